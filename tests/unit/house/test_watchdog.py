"""Check that the watchdog measures a test and stops one that takes too much time or memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from watchdog import PROPERTY, Overrun, summary, watched

ROOT = Path(__file__).parents[3]
MIB = 1 << 20


def test_memory_that_was_freed_again_counts_as_growth() -> None:
    with watched() as use:
        held = np.ones(200 * MIB, np.uint8)
        del held
    assert 150 * MIB < use.grown_bytes < 600 * MIB
    assert use.seconds > 0


def test_a_test_that_runs_too_long_is_stopped_with_its_time() -> None:
    def wait() -> None:
        with watched(seconds=0.2):
            while True:
                time.sleep(0.01)

    with pytest.raises(Overrun, match=r"the limit is 0\.2 s"):
        wait()


def test_a_test_whose_memory_grows_without_end_is_stopped() -> None:
    def grow() -> None:
        held = []
        with watched(grown_bytes=100 * MIB):
            while True:
                held.append(np.ones(MIB, np.uint8))
                time.sleep(0.01)

    with pytest.raises(Overrun, match="the limit is 100 MiB"):
        grow()


def test_one_huge_allocation_is_refused_at_once() -> None:
    with watched() as use, pytest.raises(MemoryError):
        np.ones(100 << 30, np.uint8)
    assert use.grown_bytes < 100 * MIB


def test_a_test_that_hangs_in_c_ends_the_process_with_its_traceback() -> None:
    code = "import ctypes; from watchdog import watched\nwith watched(seconds=0.5): ctypes.PyDLL(None).sleep(600)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 1
    assert "most recent call first" in done.stderr


def test_the_summary_lists_the_slowest_and_the_largest_once() -> None:
    used = [(1.0, 5 * MIB), (3.0, 0), (2.0, 9 * MIB)]
    reports = [
        SimpleNamespace(nodeid=f"test_{i}", user_properties=[(PROPERTY, use)]) for i, use in enumerate(used)
    ]
    assert summary([SimpleNamespace(nodeid="other", user_properties=[])]) == []
    lines = summary(reports, rows=2)
    assert lines[0] == "3 watched tests took 6 s"
    assert [line.split() for line in lines[2:]] == [
        ["3.0", "0", "test_1"],
        ["2.0", "9", "test_2"],
        ["1.0", "5", "test_0"],
    ]

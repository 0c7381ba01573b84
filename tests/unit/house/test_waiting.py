"""Check that the helpers for waiting name what they waited for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from waiting import output_at_end, wait_for_end, wait_until


def started(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def test_the_first_true_value_is_returned() -> None:
    answers = iter([0, "", None, 7])
    assert wait_until(lambda: next(answers), "a number", every_s=0.0) == 7


def test_a_timeout_names_what_was_awaited_with_the_output_so_far(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one line", encoding="utf-8")
    with pytest.raises(pytest.fail.Exception, match=r"waited 0 s in vain for a checkpoint; .*:\none line"):
        wait_until(lambda: False, "a checkpoint", output=tmp_path / "log", limit_s=0.1)


def test_a_process_that_ends_too_early_is_named_with_its_exit_code() -> None:
    process = started("raise SystemExit(3)")
    with pytest.raises(
        pytest.fail.Exception, match=r"SystemExit.* ended with exit code 3 before a checkpoint"
    ):
        wait_until(lambda: False, "a checkpoint", process=process)


def test_a_process_that_does_not_end_is_killed_and_its_output_is_shown() -> None:
    process = started("import time; print('begun', flush=True); time.sleep(600)")
    assert process.stdout is not None
    assert process.stdout.read(1) == "b"  # it has printed
    with pytest.raises(pytest.fail.Exception, match=r"(?s)in vain for the end of .*egun"):
        output_at_end(process, limit_s=0.1)
    assert process.returncode == -9
    other = started("import time; time.sleep(600)")
    with pytest.raises(pytest.fail.Exception, match="in vain for the end"):
        wait_for_end(other, limit_s=0.1)
    assert other.returncode == -9

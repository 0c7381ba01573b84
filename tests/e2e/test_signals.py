"""A command that is terminated, or whose terminal is closed, ends as with Ctrl-C: one line, and its work is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.storage.lease import LEASE
from waiting import wait_for_end, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def short() -> Iterator[str]:
    """A folder with a short path, for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="mr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "workers",
    [0, pytest.param(1, marks=pytest.mark.distributed)],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_stopped_training_ends_in_order_with_one_line(
    number: signal.Signals, workers: int, tiny_settings: str, tmp_path: Path, short: str
) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_settings, encoding="utf-8")
    command = [sys.executable, "-m", "metarepair", "run", "--config", str(tmp_path / "tiny.yaml")]
    command += [
        "--storage",
        str(tmp_path / "runs"),
        "--set",
        f"workers={workers}",
        "--set",
        "train.episodes=100000",
    ]
    printed = tmp_path / "printed"
    with printed.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": short},
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
    run = tmp_path / "runs" / "tiny"
    wait_until(
        lambda: list(run.glob("meta/*/checkpoints/checkpoint-*/state.json")),
        "a checkpoint",
        process=process,
        output=printed,
    )
    process.send_signal(number)
    assert wait_for_end(process, output=printed) == 1, printed.read_text(encoding="utf-8")
    text = printed.read_text(encoding="utf-8")
    assert text.count("Stopped. Finished work is kept") == 1
    assert "Traceback" not in text
    assert not (run / LEASE).exists()
    with pytest.raises(ProcessLookupError):
        wait_until(lambda: os.killpg(process.pid, 0), "the end of all its processes", limit_s=60.0)

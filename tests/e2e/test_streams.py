"""A run whose output has no reader keeps its work and releases its lock; a report prints in any encoding."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metarepair.cli import main
from metarepair.console.streams import PIPE_CLOSED
from tasks.storage.lease import LEASE
from tasks.storage.run_lock import LOCK

ROOT = Path(__file__).parents[2]


def arguments(verb: str, folder: Path) -> list[str]:
    return [verb, "--config", str(folder / "tiny.yaml"), "--storage", str(folder / "runs")]


def command(verb: str, folder: Path, stdout: int, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "metarepair", *arguments(verb, folder)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        check=False,
    )


@pytest.mark.slow
def test_a_run_with_a_closed_output_pipe_stops_and_resumes_later(tmp_path: Path, tiny_settings: str) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_settings, encoding="utf-8")
    read, write = os.pipe()
    os.close(read)
    done = command("run", tmp_path, write)
    os.close(write)
    assert done.returncode == PIPE_CLOSED, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert b"metarepair:" not in done.stderr
    run = tmp_path / "runs" / "tiny"
    assert not run.exists() or not {LEASE, LOCK} & {path.name for path in run.iterdir()}
    assert main(arguments("run", tmp_path)) == 0


@pytest.mark.slow
def test_a_report_prints_to_a_stream_of_any_encoding(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = command("report", tiny_run, subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr.decode("ascii")
    printed = {"ascii": done.stdout}
    # The same in this process, which has imported everything already: the encoding is still the stream's.
    for encoding in ("latin-1", "euc-jp"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(arguments("report", tiny_run)) == 0
        monkeypatch.undo()
        stream.flush()
        printed[encoding] = stream.buffer.getvalue()
    for encoding, content in printed.items():
        shown = content.decode(encoding)
        assert "MetaRepair" in shown
        assert "| D_fail % |" in shown
        assert ("±" in shown) == (encoding != "ascii")
    page = tiny_run / "runs" / "tiny" / "report" / "index.html"
    assert "D_fail" in page.read_text(encoding="utf-8")

"""Let a test wait for a condition: a file, a line of output, a state, the end of a process.

The limit is far above what a busy machine needs, so only a fault reaches it. A failure says what the test waited for
and what had been printed by then.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

LIMIT_S = 600.0
Found = TypeVar("Found")


def wait_until(
    look: Callable[[], Found],
    what: str,
    *,
    process: subprocess.Popen[Any] | None = None,
    output: Path | Callable[[], str] | None = None,
    limit_s: float = LIMIT_S,
    every_s: float = 0.05,
) -> Found:
    """Call `look` until its result is true, and return the result.

    what: what the test waits for, as a noun phrase. process: fail at once if this process ends first.
    output: a file, or a function, with what was printed so far.
    """
    until = time.monotonic() + limit_s
    while True:
        code = None if process is None else process.poll()
        found = look()  # after the poll, since a process may meet the condition just before it ends
        if found:
            return found
        if code is not None:
            pytest.fail(f"{_command(process)} ended with exit code {code} before {what}{_printed(output)}")
        if time.monotonic() > until:
            pytest.fail(f"waited {limit_s:.0f} s in vain for {what}{_printed(output)}")
        time.sleep(every_s)


def wait_for_end(
    process: subprocess.Popen[Any],
    *,
    output: Path | Callable[[], str] | None = None,
    limit_s: float = LIMIT_S,
) -> int:
    """Wait for the process to end, and return its exit code; kill it with its process group if it does not end."""
    try:
        return process.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.wait()
        pytest.fail(f"waited {limit_s:.0f} s in vain for the end of {_command(process)}{_printed(output)}")


def output_at_end(process: subprocess.Popen[str], *, limit_s: float = LIMIT_S) -> str:
    """Wait for the process to end, and return its output; kill it with its process group if it does not end."""
    try:
        return process.communicate(timeout=limit_s)[0]
    except subprocess.TimeoutExpired:
        _kill(process)
        rest = process.communicate()[0]
        pytest.fail(
            f"waited {limit_s:.0f} s in vain for the end of {_command(process)}; it had printed:\n{rest}"
        )


def _kill(process: subprocess.Popen[Any]) -> None:
    """Kill the process, and its group if it leads one."""
    process.kill()
    with suppress(ProcessLookupError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)


def _command(process: subprocess.Popen[Any] | None) -> str:
    args = "" if process is None else process.args
    return args if isinstance(args, str) else " ".join(map(str, args))  # type: ignore[union-attr]


def _printed(output: Path | Callable[[], str] | None) -> str:
    if output is None:
        return ""
    if not isinstance(output, Path):
        text = output()
    else:
        text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    return f"; printed so far:\n{text or '(nothing)'}"

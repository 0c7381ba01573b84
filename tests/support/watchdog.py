"""Watch a test: its seconds, the growth of its memory, and a stop if it takes too much of either.

Memory is the peak of resident memory less what the process had at the start. A thread samples it and raises `Overrun`
in the main thread. If the main thread does not react, being inside C code, the process ends with a traceback of all
threads. A limit on the address space refuses a single huge allocation.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metarepair.runs.peak_memory import peak_memory

SECONDS, GROWTH_BYTES = 60.0, 2 << 30
GRACE = 2.0  # the process ends if a test takes this many times its limit
ADDRESS_BYTES = 16 << 30  # of address space that a test may add; libraries map more than they use
PERIOD_S = 0.05
PROPERTY = "watched"  # of a test's report: (seconds, bytes)


class Overrun(BaseException):  # so that no `except Exception` hides it
    """A watched test took too long or too much memory."""


@dataclass
class Use:
    """What a test took so far."""

    seconds: float = 0.0
    grown_bytes: int = 0

    def excess(self, *, seconds: float, grown_bytes: int) -> str:
        """What is above the limits, or an empty string."""
        if self.seconds > seconds:
            return f"it took {self.seconds:.0f} s; the limit is {seconds:g} s"
        if self.grown_bytes > grown_bytes:
            return (
                f"its memory grew by {self.grown_bytes >> 20:,} MiB; the limit is {grown_bytes >> 20:,} MiB"
            )
        return ""


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the kernel does not report it."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return 0


@contextmanager
def watched(*, seconds: float = SECONDS, grown_bytes: int = GROWTH_BYTES, stderr: int = 2) -> Iterator[Use]:
    """Measure the block, and stop it at the limits: raises Overrun, or ends the process if that does not help.

    stderr: file descriptor for the traceback of a process that is ended.
    """
    use, over = Use(), threading.Event()
    began, before = time.monotonic(), resident_bytes()

    def measure() -> None:
        use.seconds = time.monotonic() - began
        use.grown_bytes = max(use.grown_bytes, resident_bytes() - before)

    def sample() -> None:
        told = False
        while not over.wait(PERIOD_S):
            measure()
            if use.excess(seconds=GRACE * seconds, grown_bytes=int(GRACE * grown_bytes)):
                faulthandler.dump_traceback(file=stderr, all_threads=True)
                os._exit(1)
            if not told and use.excess(seconds=seconds, grown_bytes=grown_bytes):
                told = True
                os.kill(os.getpid(), signal.SIGALRM)

    def stop(*_: object) -> None:
        raise Overrun(use.excess(seconds=seconds, grown_bytes=grown_bytes))

    handler = signal.signal(signal.SIGALRM, stop)
    faulthandler.dump_traceback_later(GRACE * seconds, exit=True, file=stderr)  # needs no Python to run
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        with _limited_address_space(), peak_memory(torch.device("cpu")) as peak:
            yield use
    finally:
        over.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, handler)
        measure()
    use.grown_bytes = max(use.grown_bytes, (peak.bytes or 0) - before)
    if excess := use.excess(seconds=seconds, grown_bytes=grown_bytes):
        raise Overrun(excess)


@contextmanager
def _limited_address_space() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = 0
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    if not pages or soft != resource.RLIM_INFINITY:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESS_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def summary(reports: list[Any], *, rows: int = 5) -> list[str]:
    """Lines on the watched tests among pytest's reports: how many, the slowest, and those that grew most."""
    used = {
        r.nodeid: dict(r.user_properties)[PROPERTY] for r in reports if PROPERTY in dict(r.user_properties)
    }
    if not used:
        return []
    lines = [
        f"{len(used)} watched tests took {sum(seconds for seconds, _ in used.values()):.0f} s",
        "    s    MiB",
    ]
    chosen = {name: None for by in (0, 1) for name in sorted(used, key=lambda n: -used[n][by])[:rows]}
    return lines + [f"{used[name][0]:5.1f} {used[name][1] / 2**20:6.0f}  {name[:120]}" for name in chosen]

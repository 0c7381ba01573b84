"""Watch a piece of work on bad input: it must not take long, nor much memory.

Memory is the resident memory of this process, sampled by a thread. Work that goes beyond a limit cannot be trusted to
come back, so the process is ended with the stacks of all threads; pytest-xdist reports its test as failed.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/statm")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
EVERY_S = 0.02
LIMIT_S, LIMIT_BYTES = 60.0, 2 << 30


class Watch:
    """What the work has taken so far."""

    seconds: float = 0.0
    grown_bytes: int = 0


@contextmanager
def watched(what: str = "", *, limit_s: float = LIMIT_S, limit_bytes: int = LIMIT_BYTES) -> Iterator[Watch]:
    """Measure the block. End the process if the block goes beyond a limit; `what` names it then."""
    watch, start, before, ended = Watch(), time.monotonic(), resident_bytes(), threading.Event()

    def look() -> None:
        watch.seconds = time.monotonic() - start
        watch.grown_bytes = max(watch.grown_bytes, resident_bytes() - before)

    def sample() -> None:
        while not ended.wait(EVERY_S):
            look()
            if watch.seconds > limit_s or watch.grown_bytes > limit_bytes:
                print(f"{what}: {watch.seconds:.0f} s, {watch.grown_bytes:,} bytes", file=sys.__stderr__)
                faulthandler.dump_traceback(sys.__stderr__)
                os._exit(70)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()
        look()


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(STATUS.read_text(encoding="ascii").split()[1]) * PAGE_BYTES

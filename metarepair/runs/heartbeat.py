"""Log a line when a command has logged nothing for ten seconds, so that no one has to guess whether it still works."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from metarepair.own_packages import NAMES
from metarepair.runs.progress import INTERVAL_S, duration
from metarepair.runs.watching import watching

logger = logging.getLogger(__name__)


class _LastLine(logging.Handler):
    """Remembers when the last line was logged, and the work that it belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.at = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - only its time counts
        self.at = time.monotonic()


def _left(planned_s: float | None, spent_s: float) -> str:
    if planned_s is None:
        return ""
    left_s = planned_s - spent_s
    return f", about {duration(left_s)} left" if left_s > 0 else ", longer than planned"


@contextmanager
def heartbeat(label: str, *, planned_s: float | None = None, every_s: float = INTERVAL_S) -> Iterator[None]:
    """Log `label` with the time so far and the time left whenever nothing was logged for `every_s` seconds.

    planned_s: the time that the block is expected to take; None if it is not known.
    """
    last, started = _LastLine(), time.monotonic()

    def beat() -> None:
        now = time.monotonic()
        if now - last.at >= every_s:
            logger.info(f"{label}: at work for {duration(now - started)}{_left(planned_s, now - started)}")

    loggers = [logging.getLogger(name) for name in NAMES]
    for one in loggers:
        one.addHandler(last)
    try:
        with watching(beat, every_s=min(1.0, every_s / 10)):
            yield
    finally:
        for one in loggers:
            one.removeHandler(last)

"""Progress of long work: one line with a rate and the time left, logged every ten seconds and at the end."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

logger = logging.getLogger(__name__)
INTERVAL_S = 10.0
REDRAWN_S = 0.2
CORE_SECONDS = "core-seconds"  # the unit of work that lasts until its processor time is spent


@dataclass(frozen=True)
class Step:
    """A progress line's `record.step`: the work that it belongs to, and whether it is that work's last line."""

    work: str
    over: bool


class Pace:
    """Decides when the next progress line is due: every ten seconds, and more often for a terminal."""

    def __init__(self, started: float) -> None:
        self._logged = self._drawn = started

    def level(self, now: float, *, over: bool) -> int | None:
        """INFO for a line for every handler, DEBUG for one that only a terminal draws, None for no line."""
        if over or now - self._logged >= INTERVAL_S:
            self._logged = self._drawn = now
            return logging.INFO
        if is_drawn() and now - self._drawn >= REDRAWN_S:
            self._drawn = now
            return logging.DEBUG
        return None


def is_drawn() -> bool:
    """Whether a terminal draws the progress: its handler then takes DEBUG lines."""
    return logger.isEnabledFor(logging.DEBUG)


def log_step(level: int, text: str, work: str, *, over: bool) -> None:
    """Log a progress line of `work`. It may be several lines of text where `is_drawn`."""
    logger.log(level, text, extra={"step": Step(work, over)})


class Progress:
    """Progress of one piece of work with a known number of units. Pieces that run concurrently need distinct labels."""

    def __init__(self, label: str, total: int, unit: str, *, done: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self._first = done, done
        self._started = time.monotonic()
        self._pace = Pace(self._started)
        if done:
            self._log(logging.INFO, f"{label}: {done} of {total} {unit} already done; resuming")

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units; log a line if one is due."""
        self.done += count
        now = time.monotonic()
        level = self._pace.level(now, over=self.done >= self.total)
        if level is not None:
            self._log(level, self.line(now, note))

    def line(self, now: float, note: str = "") -> str:
        """`mine: 30 of 60 shards, 2.1 shards/s, 14 s left, note`."""
        elapsed = max(now - self._started, 1e-9)
        rate = (self.done - self._first) / elapsed
        left = (self.total - self.done) / rate if rate else float("inf")
        text = f"{self.label}: {self.done} of {self.total} {self.unit}, {rate:.3g} {self.unit}/s"
        text += f", {duration(left)} left" if self.done < self.total else f", took {duration(elapsed)}"
        return f"{text}, {note}" if note else text

    def _log(self, level: int, text: str) -> None:
        log_step(level, text, self.label, over=self.done >= self.total)


def duration(seconds: float) -> str:
    """`14 s`, `2 min 5 s`, `1 h 12 min`."""
    if seconds == float("inf"):
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def times(number: int) -> str:
    """`once`, `3 times`."""
    return "once" if number == 1 else f"{number} times"

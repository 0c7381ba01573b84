"""Work done so far in, one line with a rate and the time left out: redrawn on a terminal, plain elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

PLAIN_INTERVAL_S = 10.0
TERMINAL_INTERVAL_S = 0.2


class Progress:
    """Progress of one piece of work with a known number of units."""

    def __init__(
        self, label: str, total: int, unit: str, *, done: int = 0, stream: TextIO | None = None
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.stream = stream if stream is not None else sys.stderr
        self.done, self._first = done, done
        self._started = self._shown = time.monotonic()
        self._terminal = self.stream.isatty()
        if done:
            self._write(f"{label}: {done} of {total} {unit} were done before; going on")

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts `count` more units; shows a line when the last is long enough ago."""
        self.done += count
        now = time.monotonic()
        interval = TERMINAL_INTERVAL_S if self._terminal else PLAIN_INTERVAL_S
        if now - self._shown >= interval or self.done >= self.total:
            self._shown = now
            self._write(self.line(now, note))

    def line(self, now: float, note: str = "") -> str:
        """`mine: 30 of 60 shards, 2.1 shards/s, 14 s left, note`."""
        elapsed = max(now - self._started, 1e-9)
        rate = (self.done - self._first) / elapsed
        left = (self.total - self.done) / rate if rate else float("inf")
        text = f"{self.label}: {self.done} of {self.total} {self.unit}, {rate:.3g} {self.unit}/s"
        text += f", {duration(left)} left" if self.done < self.total else f", took {duration(elapsed)}"
        return f"{text}, {note}" if note else text

    def _write(self, text: str) -> None:
        end = "\n" if not self._terminal or self.done >= self.total else ""
        start = "\r\x1b[2K" if self._terminal else ""
        self.stream.write(f"{start}{text}{end}")
        self.stream.flush()


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

"""Work done so far in, one line with a rate and the time left out: redrawn on a terminal, plain elsewhere.

What goes on at the same time has a line each: on a terminal they stand together at its end and are redrawn as one.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

PLAIN_INTERVAL_S = 10.0
TERMINAL_INTERVAL_S = 0.2
CLEAR = "\x1b[J"  # from here to the end of the screen


class Board:
    """The lines of all work under way on one stream."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.terminal = stream, stream.isatty()
        self._lines: dict[int, str] = {}
        self._lock = threading.Lock()

    def show(self, owner: int, text: str, *, over: bool) -> None:
        """The newest line of `owner`; one that is over stays where it stands."""
        with self._lock:
            if not self.terminal:
                self._put(text + "\n")
                return
            start = self._to_first_line()
            self._lines.pop(owner, None) if over else self._lines.update({owner: text})
            self._put(start + (text + "\n" if over else "") + "\n".join(self._lines.values()))

    def print_above(self, text: str, stream: TextIO) -> None:
        """Prints `text` to `stream` and draws the lines anew below it."""
        with self._lock:
            if self._lines:
                self._put(self._to_first_line())
            print(text, file=stream, flush=True)
            if self._lines:
                self._put("\n".join(self._lines.values()))

    def _to_first_line(self) -> str:
        up = len(self._lines) - 1
        return "\r" + (f"\x1b[{up}A" if up > 0 else "") + CLEAR

    def _put(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


_boards: dict[int, Board] = {}


def board_of(stream: TextIO) -> Board:
    """The one board of a stream."""
    found = _boards.get(id(stream))
    if found is None or found.stream is not stream:
        found = _boards[id(stream)] = Board(stream)
    return found


def say(text: str) -> None:
    """Prints a line to the standard output, above what is under way."""
    board_of(sys.stderr).print_above(text, sys.stdout)


class Progress:
    """Progress of one piece of work with a known number of units."""

    def __init__(
        self, label: str, total: int, unit: str, *, done: int = 0, stream: TextIO | None = None
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self._board = board_of(stream if stream is not None else sys.stderr)
        self.done, self._first = done, done
        self._started = self._shown = time.monotonic()
        if done:
            self._write(f"{label}: {done} of {total} {unit} were done before; going on")

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts `count` more units; shows a line when the last is long enough ago."""
        self.done += count
        now = time.monotonic()
        interval = TERMINAL_INTERVAL_S if self._board.terminal else PLAIN_INTERVAL_S
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
        self._board.show(id(self), text, over=self.done >= self.total)


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

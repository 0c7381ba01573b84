"""One line of progress: what is done, how fast, how long yet."""

from __future__ import annotations

import io
import re

import pytest

from metarepair.runs import progress
from metarepair.runs.progress import Progress, duration, say


class Stream(io.StringIO):
    """A stream that may be a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


class Clock:
    """Seconds that pass when told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (125, "2 min 5 s"),
        (4320, "1 h 12 min"),
        (float("inf"), "unknown time"),
    ],
)
def test_a_duration_is_in_the_units_of_its_size(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_has_rate_and_time_left(clock: Clock) -> None:
    stream = Stream(terminal=False)
    shown = Progress("mine", 60, "shards", stream=stream)
    clock.now += 15
    shown.advance(30, "fog")
    assert stream.getvalue() == "mine: 30 of 60 shards, 2 shards/s, 15 s left, fog\n"


def test_the_rate_counts_only_what_was_done_since_the_start(clock: Clock) -> None:
    stream = Stream(terminal=False)
    shown = Progress("mine", 60, "shards", done=40, stream=stream)
    assert stream.getvalue() == "mine: 40 of 60 shards were done before; going on\n"
    clock.now += 10
    shown.advance(10)
    assert stream.getvalue().splitlines()[1] == "mine: 50 of 60 shards, 1 shards/s, 10 s left"


def test_a_log_gets_a_line_every_ten_seconds_and_the_last(clock: Clock) -> None:
    stream = Stream(terminal=False)
    shown = Progress("train", 100, "episodes", stream=stream)
    for _ in range(100):
        clock.now += 0.25
        shown.advance()
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["40", "80", "100"]
    assert lines[-1].endswith("took 25 s")
    assert "\r" not in stream.getvalue()


def test_a_terminal_has_one_line_redrawn_until_the_end(clock: Clock) -> None:
    stream = Stream(terminal=True)
    shown = Progress("train", 4, "episodes", stream=stream)
    for _ in range(4):
        clock.now += 1
        shown.advance()
    assert stream.getvalue().count("\r") == 4
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("took 4 s\n")


def test_what_goes_on_at_once_has_a_line_each_on_a_terminal(clock: Clock) -> None:
    stream = Stream(terminal=True)
    first, second = (Progress(name, 2, "episodes", stream=stream) for name in ("train fog", "train snow"))
    for shown in (first, second, first, second):
        clock.now += 1
        shown.advance()
    assert screen(stream.getvalue()) == [
        "train fog: 2 of 2 episodes, 0.667 episodes/s, took 3 s",
        "train snow: 2 of 2 episodes, 0.5 episodes/s, took 4 s",
    ]


def test_what_is_said_stands_above_what_goes_on(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal=True)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("sys.stdout", stream)
    shown = Progress("train", 2, "episodes")
    clock.now += 1
    shown.advance()
    say("a word")
    assert screen(stream.getvalue()) == ["a word", "train: 1 of 2 episodes, 1 episodes/s, 1 s left"]


def screen(written: str) -> list[str]:
    """The lines that a terminal shows after all that was written."""
    lines, row = [""], 0
    for piece in re.split(r"(\r|\n|\x1b\[\d+A|\x1b\[J)", written):
        if piece == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif piece == "\x1b[J":
            lines = [*lines[:row], ""]
        elif piece.endswith("A") and piece.startswith("\x1b["):
            row -= int(piece[2:-1])
        elif piece != "\r":
            lines[row] += piece
    return [line for line in lines if line]


def test_nothing_done_yet_leaves_an_unknown_time(clock: Clock) -> None:
    assert "unknown time left" in Progress("x", 5, "items", stream=Stream(terminal=False)).line(clock.now + 1)

"""Test progress lines: the amount done, the rate, the time left and the logging interval."""

from __future__ import annotations

import logging

import pytest

from metarepair.runs import progress
from metarepair.runs.progress import Progress, duration


class Clock:
    """A clock that tests advance."""

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
def test_a_duration_is_printed_in_units_that_fit_its_length(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_has_rate_and_time_left(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    shown = Progress("mine", 60, "shards")
    clock.now += 15
    shown.advance(30, "fog")
    assert caplog.messages == ["mine: 30 of 60 shards, 2 shards/s, 15 s left, fog"]


def test_the_rate_counts_only_items_done_since_the_start(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    shown = Progress("mine", 60, "shards", done=40)
    clock.now += 10
    shown.advance(10)
    assert caplog.messages == [
        "mine: 40 of 60 shards already done; resuming",
        "mine: 50 of 60 shards, 1 shards/s, 10 s left",
    ]


def test_a_log_gets_a_line_every_ten_seconds_and_the_last(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    shown = Progress("train", 100, "episodes")
    for _ in range(100):
        clock.now += 0.25
        shown.advance()
    assert [line.split()[1] for line in caplog.messages] == ["40", "80", "100"]
    assert caplog.messages[-1].endswith("took 25 s")
    assert [record.step.over for record in caplog.records] == [False, False, True]


def test_a_handler_that_draws_gets_a_line_every_fifth_of_a_second(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, progress.logger.name)
    shown = Progress("train", 100, "episodes")
    for _ in range(100):
        clock.now += 0.125
        shown.advance()
    assert [line.split()[1] for line in caplog.messages] == [*(str(n) for n in range(2, 100, 2)), "100"]
    assert [r.levelname for r in caplog.records].count("INFO") == 2  # one after ten seconds, and the last


def test_nothing_done_yet_leaves_an_unknown_time(clock: Clock) -> None:
    assert "unknown time left" in Progress("x", 5, "items").line(clock.now + 1)

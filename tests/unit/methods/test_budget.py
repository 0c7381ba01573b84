"""Test the budget of a repair, and the order of the examples in training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from metarepair.methods.budget import Budget, Limit, parse_limit
from metarepair.methods.examples import BatchOrder, Examples
from tasks.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("60s", 60.0, "s"),
        ("0.5s", 0.5, "s"),
        (" 1e3 s ", 1000.0, "s"),
        ("500steps", 500.0, "steps"),
        ("100_000 images", 100_000.0, "images"),
        ("1e6images", 1_000_000.0, "images"),
        ("2.0steps", 2.0, "steps"),
        ("10m", 600.0, "s"),
        ("1.5 min", 90.0, "s"),
        ("2h", 7200.0, "s"),
    ],
)
def test_a_number_and_its_unit_are_a_limit(text: str, amount: float, unit: Any) -> None:
    assert parse_limit(text) == Limit(amount=amount, unit=unit)


@pytest.mark.parametrize("amount", ["60s", "500steps", "100000images", "0.25s"])
def test_a_limit_survives_the_conversion_to_text_and_back(amount: str) -> None:
    assert str(parse_limit(str(parse_limit(amount)))) == str(parse_limit(amount))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "60",
        "s",
        "60 minutes",
        "60S",
        "-60s",
        "+60s",
        "0s",
        "0steps",
        "1.5steps",
        "0.5images",
        "1e400s",
        "1e400steps",
        "0m",
        "1e308h",
        "10M",
        "10core-m",
        "nans",
        "infs",
        "1__0s",
        "1_s",
        "_1s",
        "1e-1s",
        "60s 5steps",
        "٦٠s",
        "60s\nx",
    ],
)
def test_an_invalid_limit_is_refused_with_an_example_of_a_valid_one(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"budget='.*60s \(seconds\), 60core-s \(processor time\), 500steps"
    ):
        parse_limit(text)


class Clock:
    """A clock that stands still until a test advances it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_seconds_count_from_the_creation_of_the_budget() -> None:
    clock = Clock()
    budget = Budget(parse_limit("10s"), clock=clock)
    assert (budget.seconds, budget.share, budget.over) == (0.0, 0.0, False)
    clock.now += 4
    assert (budget.seconds, budget.share, budget.over) == (4.0, 0.4, False)
    clock.now += 60
    assert (budget.share, budget.over) == (1.0, True)


@pytest.mark.parametrize(("limit", "unit"), [("8steps", "steps"), ("8images", "images")])
def test_steps_and_images_count_as_they_are_spent(limit: str, unit: str) -> None:
    clock = Clock()
    budget = Budget(parse_limit(limit), clock=clock)
    budget.spend(**{unit: 6})
    clock.now += 1e6  # ignored by this limit
    assert (budget.share, budget.over) == (0.75, False)
    budget.spend(**{"steps" if unit == "images" else "images": 1000})
    assert not budget.over
    budget.spend(**{unit: 2})
    assert budget.over


def test_without_a_limit_everything_is_counted_and_the_budget_never_ends() -> None:
    clock = Clock()
    budget = Budget(clock=clock)
    budget.spend(images=10**12, steps=10**9)
    clock.now += 1e9
    assert (budget.images_seen, budget.gradient_steps, budget.seconds) == (10**12, 10**9, 1e9)
    assert (budget.share, budget.over) == (0.0, False)


def test_a_budget_includes_the_spending_before_an_interruption() -> None:
    clock = Clock()
    budget = Budget(parse_limit("10s"), clock=clock)
    budget.go_on(seconds=7.0, images=50, steps=5)
    clock.now += 1
    budget.spend(images=10, steps=1)
    assert (budget.seconds, budget.images_seen, budget.gradient_steps) == (8.0, 60, 6)
    assert budget.share == pytest.approx(0.8)


@dataclass(frozen=True)
class Source:
    """Images whose pixels all equal `first` plus the row of the image."""

    number: int
    first: int

    @property
    def images_NHWC(self) -> Any:
        rows = np.arange(self.first, self.first + self.number, dtype=np.uint8)
        return np.broadcast_to(rows[:, None, None, None], (self.number, 2, 2, 3))

    @property
    def labels_N(self) -> Any:
        return np.arange(self.number) + 1000 * self.first


def test_rows_of_several_sources_are_one_list() -> None:
    examples = Examples(Source(3, 10), Source(0, 90), Source(4, 50))
    rows = np.array([6, 0, 2, 3, 3])
    assert len(examples) == 7
    assert examples.images(rows)[:, 0, 0, 0].tolist() == [53, 10, 12, 50, 50]
    assert examples.labels_N[rows].tolist() == [50003, 10000, 10002, 50000, 50000]
    assert examples.images(rows).shape == (5, 2, 2, 3)


def test_pixels_of_examples_are_copies() -> None:
    pixels = np.zeros((4, 2, 2, 3), np.uint8)

    class Held:
        images_NHWC, labels_N = pixels, np.zeros(4, np.int64)

    Examples(Held()).images(np.array([1, 2]))[:] = 9
    assert not pixels.any()


@pytest.mark.parametrize("shares", [None, (0.5, 0.5), (0.2, 0.8)])
def test_each_source_gives_all_its_rows_before_one_comes_again(shares: Any) -> None:
    order = BatchOrder([7, 20], batch_size=10, seed=0, shares=shares)
    drawn = np.concatenate([order.rows(step) for step in range(60)])
    sources = [(0, 27)] if shares is None else [(0, 7), (7, 27)]
    for first, end in sources:
        here = drawn[(drawn >= first) & (drawn < end)]
        size, turns = end - first, []
        for start in range(0, len(here) - size + 1, size):
            turn = here[start : start + size]
            assert sorted(turn) == list(range(first, end))
            turns.append(tuple(turn))
        assert len(set(turns)) == len(turns) > 2  # a new order in each pass


@pytest.mark.parametrize(("share", "counts"), [(0.5, (5, 5)), (0.25, (2, 8)), (0.0, (0, 10)), (1.0, (10, 0))])
def test_each_batch_has_the_shares(share: float, counts: tuple[int, int]) -> None:
    order = BatchOrder([30, 300], batch_size=10, seed=0, shares=(share, 1 - share))
    for step in range(20):
        rows = order.rows(step)
        assert ((rows < 30).sum(), (rows >= 30).sum()) == counts


def test_without_shares_sources_are_weighted_by_their_sizes() -> None:
    order = BatchOrder([10, 30], batch_size=8, seed=0)
    assert order.steps_per_epoch == 5
    found = Counter((np.concatenate([order.rows(step) for step in range(5)]) < 10).tolist())
    assert found == {True: 10, False: 30}


def test_a_batch_is_no_larger_than_all_examples() -> None:
    order = BatchOrder([3, 2], batch_size=512, seed=0)
    assert (order.batch_size, order.steps_per_epoch) == (5, 1)
    assert sorted(order.rows(4)) == [0, 1, 2, 3, 4]


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    forwards, backwards, other = (BatchOrder([9, 14], batch_size=6, seed=seed) for seed in (1, 1, 2))
    steps = list(range(30))
    found = [forwards.rows(step).tolist() for step in steps]
    assert found == [backwards.rows(step).tolist() for step in reversed(steps)][::-1]
    assert found != [other.rows(step).tolist() for step in steps]

"""Test concurrent work: its width, the first error, and a follower that processes new items in batches."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from metarepair.stages.together import Follower, each_at_once
from tasks.errors import DataError
from waiting import LIMIT_S


@pytest.mark.parametrize("at_once", [1, 2])
def test_as_many_items_as_allowed_run_at_once(at_once: int) -> None:
    barrier, done = threading.Barrier(at_once, timeout=LIMIT_S), list[int]()

    def work(item: int) -> None:
        barrier.wait()  # the barrier breaks if fewer than `at_once` items run together
        done.append(item)

    each_at_once(work, range(4), at_once=at_once)
    assert sorted(done) == [0, 1, 2, 3]


def test_the_first_error_is_raised_and_the_rest_is_not_started() -> None:
    begun, failed = list[int](), threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            failed.set()
            raise DataError("the first is broken")
        assert failed.wait(LIMIT_S)

    with pytest.raises(DataError, match="the first is broken"):
        each_at_once(work, range(20), at_once=2)
    assert len(begun) < 20


def test_a_follower_processes_everything_that_was_added() -> None:
    batches, may_go_on, begun = list[list[int]](), threading.Event(), threading.Event()

    def work(batch: Sequence[int]) -> None:
        begun.set()
        assert may_go_on.wait(LIMIT_S)
        batches.append(list(batch))

    follower = Follower(work)
    follower.add(1)
    assert begun.wait(LIMIT_S)
    follower.add(2)
    follower.add(3)
    may_go_on.set()
    follower.finish()
    assert batches == [[1], [2, 3]]


def test_an_error_of_the_follower_is_raised() -> None:
    def work(_: Sequence[int]) -> None:
        raise DataError("no features")

    follower = Follower(work)
    follower.add(1)
    with pytest.raises(DataError, match="no features"):
        follower.finish()

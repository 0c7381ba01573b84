"""Test that a function is called while a block runs, and that its end never waits for a call that hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from metarepair.runs.watching import watching


def test_the_function_is_called_until_the_block_ends() -> None:
    called = threading.Event()
    before = threading.active_count()
    with watching(called.set, every_s=0.01):
        assert called.wait(30)
    assert threading.active_count() == before
    called.clear()
    assert not called.wait(0.1)


def test_a_call_that_waits_for_a_lost_lock_does_not_hold_up_the_end() -> None:
    # As logging's lock after Ctrl-C in the middle of a fork: held by the thread whose block ends, never released.
    lost, entered = threading.Lock(), threading.Event()

    def look() -> None:
        entered.set()
        with lost:
            pass

    lost.acquire()
    with watching(look, every_s=0.01):
        assert entered.wait(30)
    assert lost.locked()
    lost.release()


class LostError(BaseException):
    """As the console raises it for a closed pipe."""


def watch_a_failure(then: Callable[[], object]) -> None:
    """Run `then` as the block while the watching function raises LostError."""
    raised = threading.Event()

    def look() -> None:
        raised.set()
        raise LostError

    with watching(look, every_s=0.01):
        assert raised.wait(30)
        then()


def test_what_the_function_raises_is_raised_at_the_end_of_the_block_and_not_printed() -> None:
    reached = threading.Event()
    with pytest.raises(LostError):
        watch_a_failure(reached.set)
    assert reached.is_set()


def test_an_exception_of_the_block_comes_before_one_of_the_function() -> None:
    with pytest.raises(ZeroDivisionError):
        watch_a_failure(lambda: 1 / 0)

"""Pieces of work in, several of them done at the same time by threads that wait for Ray; the first error out."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Item = TypeVar("Item")


def each_at_once(work: Callable[[Item], object], items: Sequence[Item], *, at_once: int) -> None:
    """Calls `work` for every item, for up to `at_once` of them at the same time.

    Raises the first error as soon as it is there: what has begun is left to end by itself, what has not is dropped.
    """
    if min(at_once, len(items)) <= 1:
        for item in items:
            work(item)
        return
    pool = ThreadPoolExecutor(max_workers=min(at_once, len(items)), thread_name_prefix="target")
    try:
        running = [pool.submit(work, item) for item in items]
        done, _ = wait(running, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Follower(Generic[Item]):
    """Works off what is added, in a thread: all that came meanwhile as one batch."""

    def __init__(self, work: Callable[[Sequence[Item]], object]) -> None:
        self._work = work
        self._added: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="follower")
        self._running: Future[None] = self._pool.submit(self._follow)

    def add(self, item: Item) -> None:
        """Hands an item over. Raises what the work raised meanwhile."""
        if self._running.done():
            self._running.result()
        self._added.put(item)

    def finish(self) -> None:
        """Waits for all that was added. Raises what the work raised."""
        self._added.put(None)
        self._running.result()
        self._pool.shutdown()

    def abandon(self) -> None:
        """Begins nothing more; what is under way is left to end by itself."""
        while not self._added.empty():
            self._added.get_nowait()
        self._added.put(None)
        self._pool.shutdown(wait=False)

    def _follow(self) -> None:
        going_on = True
        while going_on:
            batch = [self._added.get()]
            while not self._added.empty():
                batch.append(self._added.get_nowait())
            items = [item for item in batch if item is not None]
            going_on = len(items) == len(batch)
            if items:
                self._work(items)

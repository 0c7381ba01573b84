"""Run pieces of work concurrently, in threads that wait for Ray, and raise the first error."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Item = TypeVar("Item")


def each_at_once(work: Callable[[Item], object], items: Sequence[Item], *, at_once: int) -> None:
    """Call `work` for every item, for up to `at_once` of them at the same time.

    Raises the first error as soon as it occurs. Calls already running are left to end by themselves; the rest are
    dropped.
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
    """Processes added items in a thread. The items added during one batch form the next."""

    def __init__(self, work: Callable[[Sequence[Item]], object]) -> None:
        self._work = work
        self._added: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="follower")
        self._running: Future[None] = self._pool.submit(self._follow)

    def add(self, item: Item) -> None:
        """Add an item. Raises an error that the work has already raised."""
        if self._running.done():
            self._running.result()
        self._added.put(item)

    def finish(self) -> None:
        """Wait for all added items. Raises the work's error, if any."""
        self._added.put(None)
        self._running.result()
        self._pool.shutdown()

    def abandon(self) -> None:
        """Start no further work; a running batch is left to end by itself."""
        while not self._added.empty():
            self._added.get_nowait()
        self._added.put(None)
        self._pool.shutdown(wait=False)

    def _follow(self) -> None:
        more = True
        while more:
            batch = [self._added.get()]
            while not self._added.empty():
                batch.append(self._added.get_nowait())
            items = [item for item in batch if item is not None]
            more = len(items) == len(batch)
            if items:
                self._work(items)

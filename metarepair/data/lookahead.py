"""Prepares the next item in a thread while the current one is in use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")


class Lookahead(Generic[Key, Item]):
    """`get(key)` returns `make(key)` and starts to make the item of `following(key)` in a thread.

    A key other than the expected one costs only time. An error in `make` is raised by the `get` of its key.
    """

    def __init__(self, make: Callable[[Key], Item], following: Callable[[Key], Key | None]) -> None:
        self._make, self._following = make, following
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lookahead")
        self._pending: tuple[Key, Future[Item]] | None = None

    def get(self, key: Key) -> Item:
        """The item of `key`; starts to make the next one."""
        pending, self._pending = self._pending, None
        item = pending[1].result() if pending is not None and pending[0] == key else self._make(key)
        following = self._following(key)
        if following is not None:
            self._pending = following, self._pool.submit(self._make, following)
        return item

    def close(self) -> None:
        """End the thread; the item that it is making is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

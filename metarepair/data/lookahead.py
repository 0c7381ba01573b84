"""Items that are made one ahead, in a thread, while the current one is in use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")


class Lookahead(Generic[Key, Item]):
    """`make(key)` by `get(key)`; what `following` says comes next is then made already.

    Another key than the expected one costs time, no more. An error of `make` comes out of the `get` of its key.
    """

    def __init__(self, make: Callable[[Key], Item], following: Callable[[Key], Key | None]) -> None:
        self._make, self._following = make, following
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lookahead")
        self._pending: tuple[Key, Future[Item]] | None = None

    def get(self, key: Key) -> Item:
        """The item of `key`; the next one is begun."""
        pending, self._pending = self._pending, None
        item = pending[1].result() if pending is not None and pending[0] == key else self._make(key)
        following = self._following(key)
        if following is not None:
            self._pending = following, self._pool.submit(self._make, following)
        return item

    def close(self) -> None:
        """Ends the thread; what it makes now is thrown away."""
        self._pool.shutdown(wait=True, cancel_futures=True)

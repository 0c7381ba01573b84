"""Call a function again and again in a thread of its own while a block runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

END_S = 2.0


@contextmanager
def watching(look: Callable[[], object], *, every_s: float) -> Iterator[None]:
    """Call `look` every `every_s` seconds while the block runs.

    What `look` raises ends the watching. It is raised again when the block has ended without an exception of its own.

    When the block ends, a call in progress is given END_S seconds and then left alone. It may wait for a lock that is
    never released: Python drops a KeyboardInterrupt in a callback around fork, and logging's lock stays taken.
    """
    over = threading.Event()

    raised: list[BaseException] = []

    def watch() -> None:
        try:
            while not over.wait(every_s):
                look()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=watch, name=f"watching {getattr(look, '__name__', '')}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(END_S)
    if raised:
        raise raised[0]

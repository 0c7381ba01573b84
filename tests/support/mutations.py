"""Let a test fail or end the process at the n-th change of a folder: an opening for writing, a rename, a removal.

Python's audit hooks see every such call of the interpreter. What a C++ library opens by itself is not seen; its files
are renamed by Python in the end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tasks.storage.lease import LEASE

EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_watcher: Callable[[str, str], None] | None = None
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watcher is None:
        return
    if event in EVENTS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
        _watcher(
            event, os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
        )


@contextmanager
def at_each_change(
    folder: str | os.PathLike[str],
    do: Callable[[int, str], None],
    *,
    events: Sequence[str] = (*EVENTS, "open"),
    lease: bool = False,
) -> Iterator[list[str]]:
    """Call `do(number, path)` before each change below `folder` in the block, from number 1; give the paths so far.

    events: the kinds of changes that count. lease: whether those of the run's lease do, which is renewed by time.
    """
    global _hooked, _watcher
    if not _hooked:
        sys.addaudithook(_hook)  # it cannot be removed again
        _hooked = True
    paths: list[str] = []

    def watch(event: str, path: str) -> None:
        if event in events and path.startswith(os.fspath(folder)) and (lease or LEASE not in path):
            paths.append(path)
            do(len(paths), path)

    _watcher = watch
    try:
        yield paths
    finally:
        _watcher = None

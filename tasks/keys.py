"""Random generators keyed by a purpose and counters: the same key draws the same numbers anywhere.

There is no global seed. A corrupted image is keyed by (seed, image_id, corruption, severity), a task by
(seed, episode, slot), so neither depends on batch, worker, order or restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Counters = tuple[int | str, ...]


def keyed_generator(purpose: str, *counters: int | str) -> np.random.Generator:
    """A Philox generator keyed by `purpose` and `counters`; equal keys give equal streams."""
    return np.random.Generator(np.random.Philox(key=_key(purpose, counters)))


def iter_keyed_generators(
    purpose: str, *counters: int | str, last: Iterable[int]
) -> Iterator[np.random.Generator]:
    """Yield `keyed_generator(purpose, *counters, n)` for each `n` in `last`, ten times as fast.

    The same generator object is reset to the next key each time, so draw from it before asking for the next.
    """
    shared = hashlib.blake2b(_text(purpose, counters).encode(), digest_size=16)
    philox = np.random.Philox(key=0)
    generator, fresh = np.random.Generator(philox), philox.state
    for number in last:
        key = shared.copy()
        key.update(b"\x1fi%d" % number)
        fresh["state"]["key"] = np.frombuffer(key.digest(), dtype="<u8")
        philox.state = fresh
        yield generator


def _key(purpose: str, counters: Counters) -> NDArray[np.uint64]:
    digest = hashlib.blake2b(_text(purpose, counters).encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype="<u8")


def _text(purpose: str, counters: Counters) -> str:
    return "\x1f".join([purpose, *(f"{type(c).__name__[0]}{c}" for c in map(_plain, counters))])


def _plain(counter: int | str) -> int | str:
    return counter if isinstance(counter, str) else int(counter)

"""Purpose and counters in, a random generator out: the same key draws the same numbers anywhere.

No global seed exists. A corrupted image is keyed by (seed, image_id, corruption, severity), a task by
(seed, episode, slot), so neither depends on batch, worker, order or restart.
"""

from __future__ import annotations

import hashlib

import numpy as np


def keyed_generator(purpose: str, *counters: int | str) -> np.random.Generator:
    """A Philox generator keyed by `purpose` and `counters`; equal keys give equal streams."""
    text = "\x1f".join([purpose, *(f"{type(c).__name__[0]}{c}" for c in map(_plain, counters))])
    key = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key))


def _plain(counter: int | str) -> int | str:
    return counter if isinstance(counter, str) else int(counter)

"""Moments of environments in, the Fréchet distances of all pairs out: an actor pool over blocks of pairs.

An environment's factor is made once and mapped by every actor that needs it. Source: paper Eq. 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from distributed.pool import map_items
from metarepair.feature_file import read_moments
from metarepair.progress import Progress
from tasks.frechet import frechet_distance
from tasks.storage import Place

BLOCK = 16  # pairs of a work item: seconds of work, and few enough that the last actor is not waited for


@dataclass(frozen=True)
class Block:
    """One environment with some of those after it."""

    row: int
    columns: tuple[int, ...]


def all_distances(paths: Sequence[Place], *, workers: int) -> NDArray[np.float64]:
    """The symmetric matrix of Fréchet distances of all pairs, from their environments' moments."""
    count = len(paths)
    matrix = np.zeros((count, count))
    progress = Progress("distances", count * (count - 1) // 2, "pairs")
    for block, distances in map_items(
        partial(_build_distances, tuple(paths)), _blocks(count), workers=workers
    ):
        matrix[block.row, block.columns] = matrix[block.columns, block.row] = distances
        progress.advance(len(distances))
    return matrix


def _blocks(count: int) -> list[Block]:
    return [
        Block(row, tuple(range(start, min(start + BLOCK, count))))
        for row in range(count)
        for start in range(row + 1, count, BLOCK)
    ]


def _build_distances(paths: tuple[Place, ...]) -> Callable[[Block], list[float]]:
    def work(block: Block) -> list[float]:
        mine = read_moments(paths[block.row])
        return [frechet_distance(mine, read_moments(paths[other])) for other in block.columns]

    return work

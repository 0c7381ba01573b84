"""Compute the Fréchet distances of all pairs of environments from their moments, in blocks of pairs.

An environment's covariance factor is computed once and memory-mapped by every worker that needs it.
Source: paper Eq. 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from metarepair.features.files import read_features, read_moments
from metarepair.runs.progress import Progress
from metarepair.stages.executor import Executor
from tasks.distances.frechet import frechet_distance
from tasks.distances.intervals import bootstrap_interval, fid_infinity
from tasks.records import FidScore
from tasks.storage.paths import Place

BLOCK = (
    16  # pairs per work item: seconds of work, and few enough that no actor finishes long after the others
)


@dataclass(frozen=True)
class Block:
    """One environment with some of those after it."""

    row: int
    columns: tuple[int, ...]


def all_distances(
    paths: Sequence[Place], executor: Executor, *, known: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """The symmetric matrix of Fréchet distances of all pairs, from their environments' moments.

    known: the matrix of the first environments, which is not computed again.
    """
    count, first = len(paths), 0 if known is None else len(known)
    matrix = np.zeros((count, count))
    matrix[:first, :first] = 0.0 if known is None else known
    blocks = _blocks(count, first)
    progress = Progress("distances", sum(len(block.columns) for block in blocks), "pairs")
    build = partial(_build_distances, tuple(paths))
    for block, distances in executor.map(build, blocks, one_cpu=True):
        matrix[block.row, block.columns] = matrix[block.columns, block.row] = distances
        progress.advance(len(distances))
    return matrix


def _blocks(count: int, known: int = 0) -> list[Block]:
    """Each environment with those after it; the distances of the first `known` to each other are known."""
    return [
        Block(row, tuple(range(start, min(start + BLOCK, count))))
        for row in range(count)
        for start in range(max(row + 1, known), count, BLOCK)
    ]


def _build_distances(paths: tuple[Place, ...]) -> Callable[[Block], list[float]]:
    def work(block: Block) -> list[float]:
        row_moments = read_moments(paths[block.row])
        return [frechet_distance(row_moments, read_moments(paths[other])) for other in block.columns]

    return work


def with_intervals(
    scores: Sequence[FidScore],
    parts_of: Callable[[FidScore], tuple[Sequence[Place], Sequence[Place]]],
    *,
    resamples: int,
    extrapolate: bool,
    seed: int,
    executor: Executor,
) -> list[FidScore]:
    """Add bootstrap intervals and FID∞ to the scores, as requested; `parts_of` gives both sides' feature files.

    Draws are keyed by `seed` and are the same for every pair.
    """
    if not resamples and not extrapolate:
        return list(scores)
    done: dict[int, FidScore] = {}
    items = [_Pair(number, score, *map(tuple, parts_of(score))) for number, score in enumerate(scores)]
    progress = Progress("intervals", len(items), "pairs")
    build = partial(_build_intervals, resamples, extrapolate, seed)
    for pair, score in executor.map(build, items, one_cpu=True):
        done[pair.number] = score
        progress.advance(note=f"{score.experience}, {score.target}")
    return [done[number] for number in range(len(scores))]


@dataclass(frozen=True)
class _Pair:
    number: int
    score: FidScore
    experience: tuple[Place, ...]
    target: tuple[Place, ...]


def _build_intervals(resamples: int, extrapolate: bool, seed: int) -> Callable[[_Pair], FidScore]:
    def work(pair: _Pair) -> FidScore:
        x, y = (
            np.concatenate([read_features(path)[0] for path in side])
            for side in (pair.experience, pair.target)
        )
        score = pair.score
        if resamples:
            interval = bootstrap_interval(x, y, seed=seed, resamples=resamples)
            score = replace(score, low=interval.low, high=interval.high)
        if extrapolate:
            line = fid_infinity(x, y, seed=seed)
            score = replace(score, limit=line.limit, limit_error=line.standard_error)
        return score

    return work

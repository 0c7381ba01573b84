"""Measures the rank correlation between the distance of two environments and the gain from one in the other.

The hypothesis (paper Sec. 4.1; Sec. 5.3 shows distances, and repairs from more and more experiences) is that learning
in one environment helps more in another, the nearer the two are. It is measured with one experience at a time, for
every ordered pair of different corruptions:

    experience  a corruption of the training split, with its D_collect
    target      a corruption of the test split; its failures are its D_collect, on which the deployed DNN has
                accuracy 0. No target's D_fail is opened: it is not needed here
    gain        accuracy on the target's failures after the deployed DNN was fine-tuned (the method `finetune`) on
                the experience's D_collect; a validation part of that D_collect chooses the rate and the episode.
                Batch-norm statistics adapt to the experience too. Mean over seeds
    distance    Fréchet distance of the two D_collect, as scored

If the hypothesis holds, Spearman's correlation of gain and distance is negative. Pairs share corruptions, so they are
not independent. The intervals therefore resample corruptions and use the pairs of different ones among those drawn, and
p is that of a Mantel test, which permutes the corruptions' names. Source: Mantel 1967; Snijders & Borgatti 1999 (the
bootstrap of vertices, here without pairs of a corruption with itself).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from metarepair.features.extractors import distance_name
from tasks.environments import category_of
from tasks.keys import keyed_generator

# C corruptions (rows are experiences, columns targets), S seeds, R resamples, N pairs

RESAMPLES = 2000  # bootstrap resamples, and permutations of the test: the smallest p is 1/2001
LEVEL = 0.95
Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], Floats]


@dataclass(frozen=True, kw_only=True)
class Study:
    """The measurements. The diagonals hold the same corruption on both splits, and no correlation uses them."""

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    extractor: str
    distances_CC: Floats
    gains_SCC: Floats

    @property
    def gains_CC(self) -> Floats:
        """Mean over seeds."""
        gains_CC: Floats = self.gains_SCC.mean(axis=0)
        return gains_CC


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Spearman's correlation, its bootstrap interval and p of the two-sided permutation test; None if undefined.

    resamples: the number of resamples with a correlation (one whose ranks are all equal has none).
    """

    rho: float | None
    low: float | None
    high: float | None
    p: float | None
    resamples: int


def spearman(x: Floats, y: Floats) -> Floats:
    """Spearman's correlation along the last axis, without pairs that contain NaN; NaN where it is undefined."""
    absent = np.isnan(x) | np.isnan(y)
    count = np.maximum((~absent).sum(axis=-1, keepdims=True), 1)
    u, v = (_centred_ranks(np.where(absent, np.nan, z), count) for z in (x, y))
    norm = np.sqrt((u * u).sum(axis=-1) * (v * v).sum(axis=-1))
    products = (u * v).sum(axis=-1)
    rho: Floats = np.divide(products, norm, out=np.full(norm.shape, np.nan), where=norm > 0)
    return rho


def _centred_ranks(values: Floats, count: NDArray[np.int64]) -> Floats:
    """Ranks minus their mean; 0 for NaN, so that it adds nothing to a sum."""
    # Equal accuracies can differ by rounding after different sums over seeds, so values that close count as ties.
    ranks = rankdata(np.round(values, 12), axis=-1, nan_policy="omit")
    centred: Floats = np.nan_to_num(ranks - np.nansum(ranks, axis=-1, keepdims=True) / count)
    return centred


def over_all_pairs(distances: Floats, gains: Floats) -> Floats:
    """Spearman's correlation of all pairs of matrices [..., C, C]."""
    shape = (*distances.shape[:-2], -1)
    return spearman(distances.reshape(shape), gains.reshape(shape))


def less_target_means(distances: Floats, gains: Floats) -> Floats:
    """The same after subtracting each target's mean gain, so that the difficulty of a target does not count."""
    return over_all_pairs(distances, relative_gains(gains))


def within_targets(distances: Floats, gains: Floats) -> Floats:
    """The mean of the targets' own correlations, so that neither a target's difficulty nor its distance counts."""
    by_target = spearman(distances.swapaxes(-1, -2), gains.swapaxes(-1, -2))
    means: Floats = _mean_of_known(by_target, axis=-1)[..., 0]
    return means


STATISTICS: dict[str, Statistic] = {
    "all_pairs": over_all_pairs,
    "less_target_means": less_target_means,
    "within_targets": within_targets,
}


def relative_gains(gains: Floats) -> Floats:
    """Gains [..., C, C] minus their target's mean over the experiences that are not NaN."""
    return gains - _mean_of_known(gains, axis=-2)


def _mean_of_known(values: Floats, *, axis: int) -> Floats:
    count = (~np.isnan(values)).sum(axis=axis, keepdims=True)
    total = np.nansum(values, axis=axis, keepdims=True)
    means: Floats = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return means


def different(matrix_CC: Floats) -> Floats:
    """The matrix with NaN on its diagonal, for pairs of a corruption with itself."""
    return np.where(np.eye(len(matrix_CC), dtype=bool), np.nan, matrix_CC)


def correlate(
    statistic: Statistic, distances_CC: Floats, gains_CC: Floats, *, seed: int, resamples: int = RESAMPLES
) -> Correlation:
    """A statistic over pairs of different corruptions, its interval and its p; `seed` keys the random draws."""
    d, g, count = different(distances_CC), different(gains_CC), len(distances_CC)
    draws_RC = keyed_generator("hypothesis-bootstrap", seed).integers(count, size=(resamples, count))
    orders_RC = _permutations("hypothesis-permutation", seed, count=count, resamples=resamples)
    # Two draws of the same corruption fall on the diagonal, which is NaN, and do not count as a pair.
    resampled_R = statistic(_both_ends(d, draws_RC), _both_ends(g, draws_RC))
    permuted_R = statistic(_both_ends(d, orders_RC), np.broadcast_to(g, (resamples, count, count)))
    return _correlation(float(statistic(d, g)), resampled_R, permuted_R)


def correlate_target(
    distances_N: Floats, gains_N: Floats, *, target: str, seed: int, resamples: int = RESAMPLES
) -> Correlation:
    """The correlation over one target's experiences; the interval resamples them, and p permutes them."""
    count = len(distances_N)
    draws_RN = keyed_generator("hypothesis-bootstrap", seed, target).integers(count, size=(resamples, count))
    orders_RN = _permutations("hypothesis-permutation", seed, target, count=count, resamples=resamples)
    resampled_R = spearman(distances_N[draws_RN], gains_N[draws_RN])
    permuted_R = spearman(distances_N[orders_RN], np.broadcast_to(gains_N, orders_RN.shape))
    return _correlation(float(spearman(distances_N, gains_N)), resampled_R, permuted_R)


def _both_ends(matrix_CC: Floats, chosen_RC: NDArray[np.int64]) -> Floats:
    taken_RCC: Floats = matrix_CC[chosen_RC[:, :, None], chosen_RC[:, None, :]]
    return taken_RCC


def _permutations(purpose: str, *key: int | str, count: int, resamples: int) -> NDArray[np.int64]:
    rows_RC = np.tile(np.arange(count), (resamples, 1))
    return keyed_generator(purpose, *key).permuted(rows_RC, axis=1)


def _correlation(rho: float, resampled_R: Floats, permuted_R: Floats) -> Correlation:
    known_R = resampled_R[np.isfinite(resampled_R)]
    if not math.isfinite(rho) or not len(known_R):
        return Correlation(rho=None, low=None, high=None, p=None, resamples=len(known_R))
    low, high = np.quantile(known_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # A permutation that gives the same pairs may differ by rounding; it counts as equally extreme.
    as_extreme = int((np.abs(permuted_R) >= abs(rho) - 1e-12).sum())
    p = (1 + as_extreme) / (1 + len(permuted_R))
    return Correlation(rho=rho, low=float(low), high=float(high), p=p, resamples=len(known_R))


def summarise(study: Study, *, seed: int) -> dict[str, Any]:
    """All results of a study as plain JSON: over all pairs, per target, and same category against other categories."""
    d, g = different(study.distances_CC), different(study.gains_CC)
    same_CC = np.array([[category_of(a) == category_of(b) for b in study.names] for a in study.names])
    known_CC = ~np.isnan(g)
    return {
        "schema_version": 1,
        "extractor": study.extractor,
        "distance_name": distance_name(study.extractor),
        "corruptions": list(study.names),
        "seeds": list(study.seeds),
        "pairs": int(known_CC.sum()),
        "resamples": RESAMPLES,
        "level": LEVEL,
        "correlations": {name: asdict(correlate(f, d, g, seed=seed)) for name, f in STATISTICS.items()},
        "targets": {name: _of_target(study, i, seed) for i, name in enumerate(study.names)},
        "mean_gain": {
            "same_corruption": float(study.gains_CC.diagonal().mean()),
            "same_category": _mean(g[same_CC & known_CC]),
            "other_category": _mean(g[~same_CC & known_CC]),
        },
    }


def _mean(values_N: Floats) -> float | None:
    return float(values_N.mean()) if len(values_N) else None


def _of_target(study: Study, index: int, seed: int) -> dict[str, Any]:
    """A target's correlation, and the gains of its nearest and its best experience."""
    names = np.delete(np.array(study.names), index)
    distances_N = np.delete(study.distances_CC[:, index], index)
    gains_N = np.delete(study.gains_CC[:, index], index)
    nearest, best = int(distances_N.argmin()), int(gains_N.argmax())
    correlation = correlate_target(distances_N, gains_N, target=study.names[index], seed=seed)
    return asdict(correlation) | {
        "mean_gain": float(gains_N.mean()),
        "same_corruption_gain": float(study.gains_CC[index, index]),
        "nearest": str(names[nearest]),
        "nearest_gain": float(gains_N[nearest]),
        "best": str(names[best]),
        "best_gain": float(gains_N[best]),
    }

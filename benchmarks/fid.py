"""Time the Fréchet distance of two environments: ours against two peers.

    ours          tasks.distances.frechet: nuclear norm of A Bᵀ, from two covariance factors
    torchmetrics  eigenvalues of Σx Σy (torchmetrics.image.fid), from two means and covariances
    scipy         matrix root of Σx Σy (scipy.linalg.sqrtm, as pytorch-fid computes it), from the same

All use the same features, 1,000 examples of 2,048 dimensions, and compute in float64. An environment's moments are
shared by all its pairs, so only the work for a pair is timed. The moments (factors for ours, means and covariances
for the peers) are timed separately, and there are also ratios that include them on both sides.
Command: python -m benchmarks.fid [--quick] [--json FILE]
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torchmetrics.image.fid import _compute_fid  # private, but exactly what to compare with

from benchmarks.measure import Times, interleave, machine, parser, publish
from tasks.distances.frechet import Moments, frechet_distance, moments
from tasks.distances.nuclear_norm import nuclear_norm_by_svd

# N examples, D features
Features = NDArray[np.float32]
Doubles = NDArray[np.float64]

MEANING = {
    "ratio_scipy": "time of SciPy's matrix root over ours (more is better)",
    "ratio_torchmetrics": "time of torchmetrics' eigenvalues over ours (more is better)",
    "max_rel_diff": "largest relative difference between torchmetrics' distance and ours",
    "max_rel_diff_scipy": "the same between SciPy's and ours",
    "max_rel_diff_svd": "the same between the singular values of A Bᵀ, without the fast path, and ours",
    "matrix19_s": "seconds for all 171 pairs of 19 environments, including their moments",
    "pair_s": "seconds of ours for one pair",
    "moments_s": "seconds for one environment's factor (ours)",
    "covariance_s": "seconds for one environment's mean and covariance (peers)",
    "ratio_scipy_from_features": "ratio_scipy, including two environments' moments on both sides",
    "ratio_torchmetrics_from_features": "ratio_torchmetrics, including the same",
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    examples: int
    dim: int
    environments: int
    rounds: int


def sizes(*, quick: bool, smoke: bool) -> Sizes:
    """Return the sizes. --quick uses the same sizes with fewer rounds."""
    if smoke:
        return Sizes(examples=50, dim=64, environments=19, rounds=1)
    return Sizes(examples=1000, dim=2048, environments=19, rounds=2 if quick else 5)


def features_of(environment: int, size: Sizes) -> Features:
    """Return random features like a network's after a ReLU: non-negative, correlated, with a 1/√k spectrum."""
    generator = np.random.default_rng(environment)
    basis_DD = np.random.default_rng(1000).standard_normal((size.dim, size.dim)) / np.sqrt(size.dim)
    scale_D = (1 + np.arange(size.dim)) ** -0.5 * generator.uniform(0.8, 1.2, size.dim)
    latent_ND = generator.standard_normal((size.examples, size.dim)) * scale_D
    shift_D = 0.02 * generator.standard_normal(size.dim)
    features_ND: Features = np.maximum(latent_ND @ basis_DD + shift_D + 0.05, 0).astype(np.float32)
    return features_ND


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One environment's moments, in our form and in the peers'."""

    ours: Moments
    mean_D: Doubles
    covariance_DD: Doubles


def covariance(features_ND: Features) -> tuple[Doubles, Doubles]:
    """Return the mean and covariance, as pytorch-fid computes them."""
    double_ND = features_ND.astype(np.float64)
    return double_ND.mean(axis=0), np.cov(double_ND, rowvar=False)


def described(features_ND: Features) -> Environment:
    """Return all moments of one environment."""
    mean_D, covariance_DD = covariance(features_ND)
    return Environment(ours=moments(features_ND), mean_D=mean_D, covariance_DD=covariance_DD)


def ours(x: Environment, y: Environment) -> float:
    """Return MetaRepair's distance."""
    return frechet_distance(x.ours, y.ours)


def torchmetrics_way(x: Environment, y: Environment) -> float:
    """Return torchmetrics' distance, by its own function."""
    parts = (x.mean_D, x.covariance_DD, y.mean_D, y.covariance_DD)
    return float(_compute_fid(*(torch.from_numpy(part) for part in parts)))


def scipy_way(x: Environment, y: Environment) -> float:
    """Return pytorch-fid 0.3.0's distance: the root and its residual's norm (disp=False), with epsilon if needed."""
    with warnings.catch_warnings():
        # With fewer examples than dimensions the product is singular; SciPy 1.17 deprecates `disp`.
        warnings.simplefilter("ignore")
        root_DD, _ = scipy.linalg.sqrtm(x.covariance_DD @ y.covariance_DD, disp=False)
        if not np.isfinite(root_DD).all():
            offset_DD = 1e-6 * np.eye(len(x.mean_D))
            root_DD = scipy.linalg.sqrtm((x.covariance_DD + offset_DD) @ (y.covariance_DD + offset_DD))
    step_D = x.mean_D - y.mean_D
    traces = np.trace(x.covariance_DD) + np.trace(y.covariance_DD)
    return float(step_D @ step_D + traces - 2 * np.trace(root_DD).real)


def svd_way(x: Environment, y: Environment) -> float:
    """Return MetaRepair's distance by its slow path: the singular values of A Bᵀ, regardless of the bound."""
    cross_RS = x.ours.factor_RD @ y.ours.factor_RD.T
    step_D = x.ours.mean_D - y.ours.mean_D
    return float(step_D @ step_D) + x.ours.trace + y.ours.trace - 2 * nuclear_norm_by_svd(cross_RS)


def matrix_seconds(parts: Sequence[Features]) -> float:
    """Time all pairs, computing each environment's moments once."""
    started = time.perf_counter()
    known = [moments(part) for part in parts]
    for row, first in enumerate(known):
        for second in known[row + 1 :]:
            frechet_distance(first, second)
    return time.perf_counter() - started


def median_seconds(work: Callable[[], object], *, rounds: int) -> float:
    """Return the median time of one call, after a warm-up call."""
    work()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def largest_difference(found: Sequence[float], reference: Sequence[float]) -> float:
    """Return the largest difference, relative to the reference."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, reference, strict=True))


def main() -> None:
    """Run the benchmark from the command line."""
    given = parser(__doc__.splitlines()[0]).parse_args()
    size = sizes(quick=given.quick, smoke=given.smoke)
    around = machine("metarepair", "numpy", "scipy", "torch", "torchmetrics")
    parts = [features_of(i, size) for i in range(size.environments)]
    known = [described(part) for part in parts[: 2 * size.rounds]]
    ways: dict[str, Callable[[Environment, Environment], float]] = {
        "ours": ours,
        "torchmetrics": torchmetrics_way,
        "scipy": scipy_way,
    }
    values: dict[str, list[float]] = {name: [] for name in ways}

    def competitor(name: str) -> Callable[[int], None]:
        return lambda number: values[name].append(ways[name](known[2 * number], known[2 * number + 1]))

    ours(known[0], known[1])  # warm up: threads and BLAS buffers exist
    torchmetrics_way(known[0], known[1])
    times: Times = interleave({name: competitor(name) for name in ways}, rounds=size.rounds)
    figures = compare(times, values, known) | own_times(times, parts)
    publish(figures, meaning=MEANING, around=around, times=times, path=given.json, smoke=given.smoke)


def compare(
    times: Times, values: Mapping[str, Sequence[float]], known: Sequence[Environment]
) -> dict[str, float]:
    """Return ratios of times and differences of distances."""
    pairs = zip(known[::2], known[1::2], strict=True)
    return {
        "ratio_scipy": times.ratio("scipy", "ours"),
        "ratio_torchmetrics": times.ratio("torchmetrics", "ours"),
        "max_rel_diff": largest_difference(values["ours"], values["torchmetrics"]),
        "max_rel_diff_scipy": largest_difference(values["ours"], values["scipy"]),
        "max_rel_diff_svd": largest_difference(values["ours"], [svd_way(*pair) for pair in pairs]),
    }


def own_times(times: Times, parts: Sequence[Features]) -> dict[str, float]:
    """Return seconds of our full matrix and of each part, and the ratios that include all parts."""
    moments_s = median_seconds(lambda: moments(parts[0]), rounds=5)
    covariance_s = median_seconds(lambda: covariance(parts[0]), rounds=5)
    from_features = times.median("ours") + 2 * moments_s
    return {
        "matrix19_s": matrix_seconds(parts),
        "pair_s": times.median("ours"),
        "moments_s": moments_s,
        "covariance_s": covariance_s,
        "ratio_scipy_from_features": (times.median("scipy") + 2 * covariance_s) / from_features,
        "ratio_torchmetrics_from_features": (times.median("torchmetrics") + 2 * covariance_s) / from_features,
    }


if __name__ == "__main__":
    main()

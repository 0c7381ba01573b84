"""Features of two environments in, the time of their Fréchet distance out: ours against two peers' ways.

    ours          tasks.frechet: nuclear norm of A Bᵀ
    torchmetrics  eigenvalues of Σx Σy (torchmetrics.image.fid)
    scipy         matrix root of Σx Σy (scipy.linalg.sqrtm, as pytorch-fid takes it)

Each starts from the same features, 1,000 examples of 2,048 dimensions, and computes in float64.
Command: python -m benchmarks.fid [--quick] [--json FILE]
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torchmetrics.image.fid import _compute_fid  # private, but the very thing to compare with

from benchmarks.measure import Times, interleave, machine, parser, publish
from tasks.frechet import frechet_distance, moments

# N examples, D features
Features = NDArray[np.float32]

MEANING = {
    "ratio_scipy": "time of SciPy's matrix root over ours (more is better)",
    "ratio_torchmetrics": "time of torchmetrics' eigenvalues over ours (more is better)",
    "max_rel_diff": "largest relative difference between torchmetrics' distance and ours",
    "max_rel_diff_scipy": "the same between SciPy's and ours",
    "matrix19_s": "seconds for all 171 pairs of 19 environments, moments included",
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    examples: int
    dim: int
    environments: int
    rounds: int


def sizes(*, quick: bool, smoke: bool) -> Sizes:
    """The sizes are the same for --quick, which only repeats less."""
    if smoke:
        return Sizes(examples=50, dim=64, environments=19, rounds=1)
    return Sizes(examples=1000, dim=2048, environments=19, rounds=2 if quick else 5)


def features_of(environment: int, size: Sizes) -> Features:
    """Not negative, correlated, with a spectrum that falls as 1/√k: like a network's features after a ReLU."""
    generator = np.random.default_rng(environment)
    basis_DD = np.random.default_rng(1000).standard_normal((size.dim, size.dim)) / np.sqrt(size.dim)
    scale_D = (1 + np.arange(size.dim)) ** -0.5 * generator.uniform(0.8, 1.2, size.dim)
    latent_ND = generator.standard_normal((size.examples, size.dim)) * scale_D
    shift_D = 0.02 * generator.standard_normal(size.dim)
    features_ND: Features = np.maximum(latent_ND @ basis_DD + shift_D + 0.05, 0).astype(np.float32)
    return features_ND


def ours(x_ND: Features, y_ND: Features) -> float:
    """The project's."""
    return frechet_distance(moments(x_ND), moments(y_ND))


def torchmetrics_way(x_ND: Features, y_ND: Features) -> float:
    """torchmetrics' own function on the same mean and covariance."""
    (mean_x, cov_x), (mean_y, cov_y) = (
        (torch.from_numpy(m.mean(0)), torch.cov(torch.from_numpy(m).T)) for m in _double(x_ND, y_ND)
    )
    return float(_compute_fid(mean_x, cov_x, mean_y, cov_y))


def scipy_way(x_ND: Features, y_ND: Features) -> float:
    """pytorch-fid's formula; it adds its epsilon where the root is not finite, as there."""
    (mean_x, cov_x), (mean_y, cov_y) = ((m.mean(0), np.cov(m, rowvar=False)) for m in _double(x_ND, y_ND))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer examples than dimensions: the product is singular
        root_DD = scipy.linalg.sqrtm(cov_x @ cov_y)
        if not np.isfinite(root_DD).all():
            offset_DD = 1e-6 * np.eye(len(cov_x))
            root_DD = scipy.linalg.sqrtm((cov_x + offset_DD) @ (cov_y + offset_DD))
    difference_D = mean_x - mean_y
    return float(difference_D @ difference_D + np.trace(cov_x) + np.trace(cov_y) - 2 * np.trace(root_DD).real)


def _double(*parts: Features) -> list[NDArray[np.float64]]:
    return [part.astype(np.float64) for part in parts]


def matrix_seconds(parts: Sequence[Features]) -> float:
    """All pairs, the moments of each environment once."""
    started = time.perf_counter()
    known = [moments(part) for part in parts]
    for row, first in enumerate(known):
        for second in known[row + 1 :]:
            frechet_distance(first, second)
    return time.perf_counter() - started


def largest_difference(found: Sequence[float], reference: Sequence[float]) -> float:
    """Relative to the reference."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, reference, strict=True))


def main() -> None:
    """Measures and prints."""
    given = parser(__doc__.splitlines()[0]).parse_args()
    size = sizes(quick=given.quick, smoke=given.smoke)
    around = machine("metarepair", "numpy", "scipy", "torch", "torchmetrics")
    parts = [features_of(i, size) for i in range(size.environments)]
    ways: dict[str, Callable[[Features, Features], float]] = {
        "ours": ours,
        "torchmetrics": torchmetrics_way,
        "scipy": scipy_way,
    }
    values: dict[str, list[float]] = {name: [] for name in ways}

    def competitor(name: str) -> Callable[[int], None]:
        return lambda number: values[name].append(ways[name](parts[2 * number], parts[2 * number + 1]))

    ours(parts[0], parts[1])  # warm: threads and BLAS buffers exist
    times: Times = interleave({name: competitor(name) for name in ways}, rounds=size.rounds)
    figures = {
        "ratio_scipy": times.ratio("scipy", "ours"),
        "ratio_torchmetrics": times.ratio("torchmetrics", "ours"),
        "max_rel_diff": largest_difference(values["ours"], values["torchmetrics"]),
        "max_rel_diff_scipy": largest_difference(values["ours"], values["scipy"]),
        "matrix19_s": matrix_seconds(parts),
    }
    publish(figures, meaning=MEANING, around=around, times=times, path=given.json, smoke=given.smoke)


if __name__ == "__main__":
    main()

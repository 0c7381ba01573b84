"""Measure whether confidences are as high as the share of right predictions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# N predictions

BINS = 15


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The predictions whose confidence is in one bin: their number, mean confidence, and share that is right."""

    count: int
    confidence: float
    right: float


def calibration_bins(
    confidence_N: NDArray[np.floating], right_N: NDArray[np.bool_], bins: int = BINS
) -> list[Bin]:
    """The bins of equal width that hold predictions, from low to high confidence."""
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    return [
        Bin(
            count=int((bin_N == b).sum()),
            confidence=float(confidence_N[bin_N == b].mean()),
            right=float(right_N[bin_N == b].mean()),
        )
        for b in np.unique(bin_N)
    ]


def calibration_error(bins: list[Bin]) -> float:
    """The expected calibration error (Guo et al. 2017) of the predictions in these bins; 0 if there are none."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.confidence - one.right) for one in bins) / max(total, 1)

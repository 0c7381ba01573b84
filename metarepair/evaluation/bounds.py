"""Bound a share that was seen in few images.

Source: Clopper and Pearson 1934.
"""

from __future__ import annotations

from scipy.stats import binomtest

LEVEL = 0.95  # of the one-sided bound


def broken_bound(broken: int, right: int) -> float:
    """One-sided 95% upper bound of a share of which `broken` of `right` images were seen; 1 without any image."""
    if not right:
        return 1.0
    return float(binomtest(broken, right, alternative="less").proportion_ci(LEVEL, method="exact").high)

"""Bound a share that was seen in few images, and the gain of a paired comparison.

Source: Clopper and Pearson 1934; variance of a paired comparison: McNemar 1947.
"""

from __future__ import annotations

import math

from scipy.stats import binomtest

LEVEL = 0.95  # of the one-sided bound
Z95 = 1.96  # two-sided 95% quantile of the normal distribution


def broken_bound(broken: int, right: int) -> float:
    """One-sided 95% upper bound of a share of which `broken` of `right` images were seen; 1 without any image."""
    if not right:
        return 1.0
    return float(binomtest(broken, right, alternative="less").proportion_ci(LEVEL, method="exact").high)


def share_interval(count: int, images: int) -> tuple[float, float]:
    """The 95% interval of a share of which `count` of at least one image were seen (Wilson 1927)."""
    low, high = binomtest(count, images).proportion_ci(method="wilson")
    return float(low), float(high)


def gain_interval(*, fixed: int, broken: int, images: int) -> tuple[float, float, float]:
    """The gain of accuracy of a paired comparison, and its 95% interval (normal approximation; McNemar's variance).

    fixed, broken: images, of all `images`, that became right, and that became wrong.
    """
    gain = (fixed - broken) / images
    error = math.sqrt(max(fixed + broken - (fixed - broken) ** 2 / images, 0.0)) / images
    return gain, gain - Z95 * error, gain + Z95 * error

"""Distances between environments: the Fréchet distance of features, its intervals and its limit for many examples.

Source: paper Eq. 7; Heusel et al. 2017; Chong and Forsyth 2020.
"""

from tasks.distances.frechet import (
    Moments,
    Scatter,
    frechet_distance,
    merge,
    merge_in_order,
    moments,
    scatter,
)
from tasks.distances.intervals import (
    DistanceInterval,
    Extrapolation,
    bootstrap_interval,
    fewest_resamples,
    fid_infinity,
)

__all__ = [
    "DistanceInterval",
    "Extrapolation",
    "Moments",
    "Scatter",
    "bootstrap_interval",
    "fewest_resamples",
    "fid_infinity",
    "frechet_distance",
    "merge",
    "merge_in_order",
    "moments",
    "scatter",
]

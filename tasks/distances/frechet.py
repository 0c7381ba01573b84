"""Features in, the squared Fréchet distance of their two Gaussians out: exact, low-rank, no matrix root.

With centred features A = Xc/√(n−1) and B = Yc/√(m−1), the eigenvalues of Σx Σy = AᵀA BᵀB are the squared
singular values of A Bᵀ, so tr((Σx Σy)^½) is the nuclear norm of A Bᵀ and tr Σx = ‖A‖_F². Nothing is
inverted, nothing needs an epsilon, nothing can turn imaginary. The nuclear norm is taken the fast way where
that is certified to `TOLERANCE`, by the SVD elsewhere.

Three ways lead to a factor: the rows themselves (N − 1 ≤ D), the triangle of their QR decomposition
(N − 1 > D), the eigenvectors of merged raw moments (no rows at hand). They give one distance to 1e-9.

Shape letters: N examples, D features, R rows of a factor (R = min(N − 1, D)), S rows of another.
Source: paper Eq. 7; Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", Eq. 6. Merging:
Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.distances.nuclear_norm import nuclear_norm_by_gram, nuclear_norm_by_svd
from tasks.errors import DataError

Doubles = NDArray[np.float64]
Names = Sequence[str] | Sequence[int] | NDArray[np.integer[Any]]

# The most, relative to the distance, that the fast way may be off by according to its own bound. The bound
# is careful: for 1,000 images of two corruptions in a network's 1,280 features it says 1e-7 (far apart) to
# 2e-6 (near), where the difference to the SVD is 1e-14 to 3e-11. float32 features are themselves off by 6e-8.
TOLERANCE = 1e-6
LARGEST = 1e150  # features beyond it have squares that overflow
REAL_KINDS = "biuf"  # NumPy's letters: bool, integer, unsigned, float


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Mean and covariance of `count` feature vectors; factor_RD.T @ factor_RD is the covariance (n − 1)."""

    count: int
    mean_D: Doubles
    factor_RD: Doubles

    def __post_init__(self) -> None:
        assert self.mean_D.ndim == 1, self.mean_D.shape
        assert self.factor_RD.ndim == 2, self.factor_RD.shape
        assert self.factor_RD.shape[1] == len(self.mean_D), (self.factor_RD.shape, self.mean_D.shape)

    @cached_property  # an environment's moments serve all its pairs
    def trace(self) -> float:
        """Trace of the covariance, ‖factor‖_F²: the distance's own scale."""
        return float(np.square(self.factor_RD).sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class Scatter:
    """Raw moments that merge: count, mean and scatter Σ (x − mean)(x − mean)ᵀ of some rows (count ≥ 1)."""

    count: int
    mean_D: Doubles
    scatter_DD: Doubles

    def moments(self) -> Moments:
        """The moments, by one symmetric eigendecomposition; DataError for fewer than two rows.

        Rounding leaves factors of order 1e-8 of the largest in directions that have no variance: where all
        rows are at hand, `moments(features)` is the more accurate way.
        """
        _need_two_rows(self.count)
        values_D, vectors_DD = np.linalg.eigh(self.scatter_DD / (self.count - 1))
        rank = min(self.count - 1, len(values_D))  # eigh sorts upward: the last are the largest
        roots_R = np.sqrt(np.clip(values_D[-rank:], 0.0, None))
        return Moments(
            count=self.count, mean_D=self.mean_D, factor_RD=roots_R[:, None] * vectors_DD[:, -rank:].T
        )


def moments(features_ND: ArrayLike, *, names: Names | None = None) -> Moments:
    """Mean and covariance factor of features [N, D] of any real type; computed in float64.

    For N − 1 ≤ D the factor is the centred features over √(n−1), reflected so that the direction in which
    all rows are equal, where nothing is left, is the first row, and that row dropped: n − 1 rows with the
    same covariance and no singular value that is zero by construction. For N − 1 > D it is the triangular R
    of their QR decomposition, which has the same RᵀR without squaring the condition number as an
    eigendecomposition of the covariance would.

    names: of the images, one a row, for errors to name. Raises DataError for fewer than two rows, for features
    that are complex, text or masked, and for NaN, infinite or beyond 1e150 (it names the row, and the image).
    """
    checked_ND = checked_features(features_ND, names=names)
    count, dim = checked_ND.shape
    _need_two_rows(count)
    shifted_ND, shift_D = _shifted(checked_ND)
    root = np.sqrt(count)
    # The Householder reflection that takes the vector of ones to the first axis; shifted rows begin with 0.
    rows_RD = shifted_ND[1:] - shift_D * (root / (root + 1.0))
    factor_RD = rows_RD if len(rows_RD) <= dim else np.linalg.qr(rows_RD, mode="r")
    return Moments(count=count, mean_D=checked_ND[0] + shift_D, factor_RD=factor_RD / np.sqrt(count - 1))


def scatter(features_ND: ArrayLike, *, names: Names | None = None) -> Scatter:
    """Mergeable raw moments of features [N, D], N ≥ 1, in float64; names and errors as in `moments`."""
    checked_ND = checked_features(features_ND, names=names)
    if len(checked_ND) == 0:
        raise DataError("no features: the scatter of zero rows has no mean; give at least one row")
    mean_D, centred_ND = centred(checked_ND)
    return Scatter(count=len(checked_ND), mean_D=mean_D, scatter_DD=centred_ND.T @ centred_ND)


def merge(a: Scatter, b: Scatter) -> Scatter:
    """Raw moments of both parts' rows together (Chan's update); DataError when the two have different D.

    Merge in a fixed order: float addition is not associative, so another order changes the last bits.
    """
    need_same_dim(len(a.mean_D), len(b.mean_D))
    count = a.count + b.count
    step_D = b.mean_D - a.mean_D
    between_DD = np.outer(step_D, step_D) * (a.count * b.count / count)
    return Scatter(
        count=count,
        mean_D=a.mean_D + step_D * (b.count / count),
        scatter_DD=a.scatter_DD + b.scatter_DD + between_DD,
    )


def merge_in_order(parts: Iterable[Scatter]) -> Scatter:
    """Raw moments of all parts' rows, merged one after the other; DataError for none, or another D.

    Parts are shards, in the order of the shards and not in that of their arrival: then the bits do not depend
    on how many workers there were, or which of them did which shard.
    """
    waiting = iter(parts)
    first = next(waiting, None)
    if first is None:
        raise DataError("no parts: give the raw moments of at least one shard")
    return reduce(merge, waiting, first)


def frechet_distance(x: Moments, y: Moments) -> float:
    """Squared Fréchet distance of two Gaussians (paper Eq. 7; Heusel et al. 2017).

    x, y: moments over the same D features, float64. Returns a distance ≥ 0 in squared feature units: 0 for
    bit-equal moments (the distance is a metric), and the same bits for (y, x) as for (x, y). The count plays
    no part. Raises DataError when the two have different D.
    """
    need_same_dim(len(x.mean_D), len(y.mean_D))
    order = _order(x, y)
    if order == 0:
        return 0.0
    # One order for both calls: the spectra of A Bᵀ and of its transpose differ in their last bits.
    first, second = (x, y) if order < 0 else (y, x)
    return distance_from_cross(
        first.factor_RD @ second.factor_RD.T,
        between_means=float(np.square(first.mean_D - second.mean_D).sum()),
        traces=first.trace + second.trace,
    )


def distance_from_cross(cross_RS: Doubles, *, between_means: float, traces: float) -> float:
    """The distance from A Bᵀ of two covariance factors, ‖mean x − mean y‖², and tr Σx + tr Σy.

    Symmetric eigenvalues of the Gram matrix of A Bᵀ come with a bound on what squaring it cost. Where that is
    more than `TOLERANCE` of the distance (nearly equal moments, many equal rows or other null directions), the
    singular values of A Bᵀ itself are taken, which are right to rounding of the traces, and take twice as long.
    """
    fast = nuclear_norm_by_gram(cross_RS)
    between_covariances = traces - 2.0 * fast.value
    if 2.0 * fast.error > TOLERANCE * (between_means + between_covariances):
        between_covariances = traces - 2.0 * nuclear_norm_by_svd(cross_RS)
    # Exactly ≥ 0; rounding may leave about −1e-13 of the traces for moments that are nearly equal.
    return between_means + max(between_covariances, 0.0)


def _order(x: Moments, y: Moments) -> int:
    """−1, 0 or 1 by rows, mean and, only where these are equal, factor (its bytes take long to compare)."""
    short_x, short_y = (len(x.factor_RD), x.mean_D.tobytes()), (len(y.factor_RD), y.mean_D.tobytes())
    if short_x != short_y:
        return -1 if short_x < short_y else 1
    bytes_x, bytes_y = x.factor_RD.tobytes(), y.factor_RD.tobytes()
    return (bytes_x > bytes_y) - (bytes_x < bytes_y)


def centred(features_ND: Doubles) -> tuple[Doubles, Doubles]:
    """Mean [D], and features less their mean [N, D]: exactly zero for constant features, whatever their size."""
    shifted_ND, shift_D = _shifted(features_ND)
    return features_ND[0] + shift_D, shifted_ND - shift_D


def _shifted(features_ND: Doubles) -> tuple[Doubles, Doubles]:
    """Features less their first row, and the mean of that."""
    shifted_ND = features_ND - features_ND[0]
    return shifted_ND, shifted_ND.mean(axis=0)


def checked_features(
    features_ND: ArrayLike, *, names: Names | None = None, largest: float = LARGEST
) -> Doubles:
    """Features [N, D] as float64; DataError for another shape, for what is no real number or masked, and for rows
    that are not finite or beyond `largest`."""
    features = _real_numbers(features_ND)
    if features.ndim != 2 or features.shape[1] == 0:
        raise DataError(f"features have shape {features.shape}; give one row per example, [N, D], D ≥ 1")
    if names is not None and len(names) != len(features):
        raise DataError(f"{len(names)} names for {len(features)} rows of features; give one a row")
    found_ND: Doubles = features.astype(np.float64)
    bad_rows = np.flatnonzero(~((found_ND >= -largest) & (found_ND <= largest)).all(axis=1))
    if len(bad_rows):
        image = "" if names is None else f" (image {names[bad_rows[0]]})"
        raise DataError(
            f"row {bad_rows[0]}{image} of the features is NaN, infinite or beyond {largest:g} "
            f"({len(bad_rows)} of {len(found_ND)} rows are); look at that image and at the extractor's weights"
        )
    return found_ND


def _real_numbers(features: ArrayLike) -> NDArray[Any]:
    if isinstance(features, np.ma.MaskedArray):
        raise DataError(
            "features are a masked array; leave the masked rows out, and give the others' `.data`"
        )
    try:
        array = np.asarray(features)
    except (TypeError, ValueError) as error:  # rows of different lengths
        raise DataError(f"features are no array ({error}); give one row per example, [N, D]") from error
    if array.dtype.kind not in REAL_KINDS:
        raise DataError(f"features are {array.dtype}; give real numbers, as float32 or float64")
    return array


def _need_two_rows(count: int) -> None:
    if count < 2:
        raise DataError(
            f"{count} feature rows have no covariance; a Fréchet distance needs at least 2 images"
        )


def need_same_dim(dim_x: int, dim_y: int) -> None:
    """DataError when two have different D."""
    if dim_x != dim_y:
        raise DataError(
            f"features of {dim_x} and of {dim_y} dimensions cannot be compared; "
            "extract both with the same extractor"
        )

"""Compute the squared Fréchet distance between Gaussian fits of two sets of features, exactly and without matrix roots.

With centred features A = Xc/√(n−1) and B = Yc/√(m−1), the eigenvalues of Σx Σy = AᵀA BᵀB are the squared
singular values of A Bᵀ, so tr((Σx Σy)^½) is the nuclear norm of A Bᵀ, and tr Σx = ‖A‖_F². No matrix is
inverted, no epsilon is needed, and no value can become imaginary. The nuclear norm is computed by the fast method
if its error bound is within `TOLERANCE`, else by the SVD.

There are three ways to obtain a factor: from the rows themselves (N − 1 ≤ D), from the triangle of their QR
decomposition (N − 1 > D), and from the eigenvectors of merged raw moments (if the rows are not available). The
resulting distances agree to 1e-9.

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

# The largest error, relative to the distance, that the fast method may have by its own bound. The bound is
# conservative: for 1,000 images of two corruptions in a network's 1,280 features it is 1e-7 (far apart) to
# 2e-6 (near), while the difference from the SVD is 1e-14 to 3e-11. float32 features have errors of 6e-8 themselves.
TOLERANCE = 1e-6
LARGEST = 1e150  # the squares of larger features overflow
REAL_KINDS = "biuf"  # NumPy's letters: bool, integer, unsigned, float


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """The mean and a covariance factor of N feature vectors.

    Attributes:
        count: N, the number of feature vectors, at least 2.
        mean_D: float64 [D], in feature units.
        factor_RD: float64 [R, D] with R = min(N − 1, D), in feature units; `factor_RD.T @ factor_RD` is the covariance
            (normalised by N − 1).
    """

    count: int
    mean_D: Doubles
    factor_RD: Doubles

    def __post_init__(self) -> None:
        assert self.mean_D.ndim == 1, self.mean_D.shape
        assert self.factor_RD.ndim == 2, self.factor_RD.shape
        assert self.factor_RD.shape[1] == len(self.mean_D), (self.factor_RD.shape, self.mean_D.shape)

    @cached_property  # an environment's moments are used for all its pairs
    def trace(self) -> float:
        """The trace of the covariance, ‖factor‖_F², in squared feature units: the scale of the distance."""
        return float(np.square(self.factor_RD).sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class Scatter:
    """Raw moments of N feature vectors, which can be merged with those of other vectors.

    Attributes:
        count: N, the number of feature vectors, at least 1.
        mean_D: float64 [D], in feature units.
        scatter_DD: float64 [D, D], Σ (x − mean)(x − mean)ᵀ, in squared feature units.
    """

    count: int
    mean_D: Doubles
    scatter_DD: Doubles

    def moments(self) -> Moments:
        """Compute the moments, by one symmetric eigendecomposition.

        Rounding leaves factors of 1e-8 times the largest in directions without variance. If all rows are available,
        `moments(features)` is more accurate.

        Returns:
            The moments of the same N feature vectors.

        Raises:
            DataError: N is less than 2.
        """
        _need_two_rows(self.count)
        values_D, vectors_DD = np.linalg.eigh(self.scatter_DD / (self.count - 1))
        rank = min(self.count - 1, len(values_D))  # eigh sorts upward: the last are the largest
        roots_R = np.sqrt(np.clip(values_D[-rank:], 0.0, None))
        return Moments(
            count=self.count, mean_D=self.mean_D, factor_RD=roots_R[:, None] * vectors_DD[:, -rank:].T
        )


def moments(features_ND: ArrayLike, *, names: Names | None = None) -> Moments:
    """Compute the mean and a covariance factor of features, in float64.

    For N − 1 ≤ D the factor is the centred features over √(n−1), after a reflection that moves the direction
    in which all rows are equal, which centring has set to zero, to the first row. That row is dropped: the other
    n − 1 rows have the same covariance, and no singular value is zero by construction. For N − 1 > D the factor is the
    triangular R of their QR decomposition: RᵀR is the same, and the condition number is not squared, as it would
    be in an eigendecomposition of the covariance.

    Args:
        features_ND: [N, D] of any real type, one row per example, N ≥ 2.
        names: names or ids of the N images, for error messages.

    Returns:
        The moments, with a factor of min(N − 1, D) rows.

    Raises:
        DataError: there are fewer than two rows; the features are complex, text or masked; or a row is NaN, infinite
            or beyond 1e150 (the message names the row, and the image if `names` is given).

    Example:
        >>> from tasks.distances import moments
        >>> x = moments([[0.0], [2.0]])
        >>> x.count, x.mean_D.tolist(), round(x.trace, 6)
        (2, [1.0], 2.0)

    Source: paper Eq. 7.
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
    """Compute raw moments of features that can be merged with those of other features, in float64.

    Args:
        features_ND: [N, D] of any real type, one row per example, N ≥ 1.
        names: names or ids of the N images, for error messages.

    Returns:
        The raw moments.

    Raises:
        DataError: there is no row, or a row cannot be used, as in `moments`.
    """
    checked_ND = checked_features(features_ND, names=names)
    if len(checked_ND) == 0:
        raise DataError("no features: the scatter of zero rows has no mean; give at least one row")
    mean_D, centred_ND = centred(checked_ND)
    return Scatter(count=len(checked_ND), mean_D=mean_D, scatter_DD=centred_ND.T @ centred_ND)


def merge(a: Scatter, b: Scatter) -> Scatter:
    """Merge the raw moments of two sets of feature vectors.

    Merge in a fixed order: float addition is not associative, so another order changes the last bits.

    Args:
        a: raw moments over D features.
        b: raw moments over the same D features.

    Returns:
        The raw moments of both sets together.

    Raises:
        DataError: the two have different D.

    Source: Chan, Golub and LeVeque 1979.
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
    """Merge the raw moments of several parts, one after the other.

    Args:
        parts: raw moments over the same D features, in the order of their shards. In order of arrival, the last
            bits would depend on the number of workers and on which worker computed which shard.

    Returns:
        The raw moments of all parts together.

    Raises:
        DataError: there are no parts, or they have different D.
    """
    remaining = iter(parts)
    first = next(remaining, None)
    if first is None:
        raise DataError("no parts: give the raw moments of at least one shard")
    return reduce(merge, remaining, first)


def frechet_distance(x: Moments, y: Moments) -> float:
    """Compute the squared Fréchet distance of two Gaussians, ‖μx − μy‖² + tr Σx + tr Σy − 2 tr((Σx Σy)^½).

    The numbers of examples play no part, and swapping x and y changes no bit of the result.

    Args:
        x: moments over D features, float64.
        y: moments over the same D features, float64.

    Returns:
        The distance, ≥ 0, in squared feature units; exactly 0 for moments that are equal bit by bit.

    Raises:
        DataError: the two have different D.

    Example:
        >>> from tasks.distances import frechet_distance, moments
        >>> x = moments([[0.0], [2.0]])  # mean 1, variance 2
        >>> y = moments([[0.0], [4.0]])  # mean 2, variance 8
        >>> round(frechet_distance(x, y), 6)  # 1 + 2 + 8 - 2 * 4
        3.0

    Source: paper Eq. 7; Heusel et al. 2017, Eq. 6.
    """
    need_same_dim(len(x.mean_D), len(y.mean_D))
    order = _order(x, y)
    if order == 0:
        return 0.0
    # One order for (x, y) and (y, x): the spectra of A Bᵀ and of its transpose differ in their last bits.
    first, second = (x, y) if order < 0 else (y, x)
    return distance_from_cross(
        first.factor_RD @ second.factor_RD.T,
        between_means=float(np.square(first.mean_D - second.mean_D).sum()),
        traces=first.trace + second.trace,
    )


def distance_from_cross(cross_RS: Doubles, *, between_means: float, traces: float) -> float:
    """The distance, given A Bᵀ of two covariance factors, ‖mean x − mean y‖², and tr Σx + tr Σy.

    The eigenvalues of the Gram matrix of A Bᵀ come with a bound on the error that squaring causes. If the bound
    exceeds `TOLERANCE` times the distance (nearly equal moments, many equal rows or other null directions), the
    singular values of A Bᵀ itself are used. They are accurate to rounding of the traces and take twice as long.
    """
    fast = nuclear_norm_by_gram(cross_RS)
    between_covariances = traces - 2.0 * fast.value
    if 2.0 * fast.error > TOLERANCE * (between_means + between_covariances):
        between_covariances = traces - 2.0 * nuclear_norm_by_svd(cross_RS)
    # Exactly ≥ 0; rounding may leave about −1e-13 of the traces for moments that are nearly equal.
    return between_means + max(between_covariances, 0.0)


def _order(x: Moments, y: Moments) -> int:
    """Compare by number of rows and mean and, only if these are equal, by factor, whose bytes are slow to compare."""
    short_x, short_y = (len(x.factor_RD), x.mean_D.tobytes()), (len(y.factor_RD), y.mean_D.tobytes())
    if short_x != short_y:
        return -1 if short_x < short_y else 1
    bytes_x, bytes_y = x.factor_RD.tobytes(), y.factor_RD.tobytes()
    return (bytes_x > bytes_y) - (bytes_x < bytes_y)


def centred(features_ND: Doubles) -> tuple[Doubles, Doubles]:
    """The mean [D], and the features minus their mean [N, D]: exactly zero for constant features of any size."""
    shifted_ND, shift_D = _shifted(features_ND)
    return features_ND[0] + shift_D, shifted_ND - shift_D


def _shifted(features_ND: Doubles) -> tuple[Doubles, Doubles]:
    """The features minus their first row, and the mean of the differences."""
    shifted_ND = features_ND - features_ND[0]
    return shifted_ND, shifted_ND.mean(axis=0)


def checked_features(
    features_ND: ArrayLike, *, names: Names | None = None, largest: float = LARGEST
) -> Doubles:
    """The features [N, D] as float64.

    Raises DataError for another shape, values that are not real numbers, masked arrays, and rows that are not finite
    or beyond `largest`.
    """
    features = _real_numbers(features_ND)
    if features.ndim != 2 or features.shape[1] == 0:
        raise DataError(f"features have shape {features.shape}; give one row per example, [N, D], D ≥ 1")
    if names is not None and len(names) != len(features):
        raise DataError(f"{len(names)} names for {len(features)} rows of features; give one per row")
    doubles_ND: Doubles = features.astype(np.float64)
    bad_rows = np.flatnonzero(~((doubles_ND >= -largest) & (doubles_ND <= largest)).all(axis=1))
    if len(bad_rows):
        image = "" if names is None else f" (image {names[bad_rows[0]]})"
        raise DataError(
            f"row {bad_rows[0]}{image} of the features is NaN, infinite or beyond {largest:g} "
            f"({len(bad_rows)} of {len(doubles_ND)} rows are); check that image and the extractor's weights"
        )
    return doubles_ND


def _real_numbers(features: ArrayLike) -> NDArray[Any]:
    if isinstance(features, np.ma.MaskedArray):
        raise DataError(
            "features are a masked array; drop the masked rows, and give the `.data` of the others"
        )
    try:
        array = np.asarray(features)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # rows of different lengths, a tensor with a gradient
        raise DataError(f"features are not an array ({error}); give one row per example, [N, D]") from error
    if array.dtype.kind not in REAL_KINDS:
        raise DataError(f"features are {array.dtype}; give real numbers, as float32 or float64")
    return array


def _need_two_rows(count: int) -> None:
    if count < 2:
        raise DataError(
            f"{count} feature rows have no covariance; a Fréchet distance needs at least 2 images"
        )


def need_same_dim(dim_x: int, dim_y: int) -> None:
    """Raise DataError if the numbers of features differ."""
    if dim_x != dim_y:
        raise DataError(
            f"features of {dim_x} and of {dim_y} dimensions cannot be compared; "
            "extract both with the same extractor"
        )

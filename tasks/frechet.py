"""Features in, the squared Fréchet distance of their two Gaussians out: exact, low-rank, no matrix root.

With centred features A = Xc/√(n−1) and B = Yc/√(m−1), the eigenvalues of Σx Σy = AᵀA BᵀB are the squared
singular values of A Bᵀ, so tr((Σx Σy)^½) is the nuclear norm of A Bᵀ and tr Σx = ‖A‖_F². Nothing is
inverted, nothing needs an epsilon, nothing can turn imaginary.

Shape letters: N examples, D features, R rows of a factor (R = min(N, D)).
Source: paper Eq. 7; Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", Eq. 6. Merging:
Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DataError

Doubles = NDArray[np.float64]


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

    @property
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


def moments(features_ND: NDArray[Any]) -> Moments:
    """Mean and covariance factor of features [N, D] of any float type; computed in float64.

    For N ≤ D the factor is the centred features over √(n−1); for N > D the triangular R of their QR
    decomposition, which has the same RᵀR without squaring the condition number as an eigendecomposition of
    the covariance would. Raises DataError for fewer than two rows, and for NaN or infinite features (it
    names the row).
    """
    features_ND = _checked(features_ND)
    count, dim = features_ND.shape
    _need_two_rows(count)
    mean_D, centred_ND = _centred(features_ND)
    factor_RD = centred_ND if count <= dim else np.linalg.qr(centred_ND, mode="r")
    return Moments(count=count, mean_D=mean_D, factor_RD=factor_RD / np.sqrt(count - 1))


def scatter(features_ND: NDArray[Any]) -> Scatter:
    """Mergeable raw moments of features [N, D], N ≥ 1, in float64; errors as in `moments`."""
    features_ND = _checked(features_ND)
    if len(features_ND) == 0:
        raise DataError("no features: the scatter of zero rows has no mean; give at least one row")
    mean_D, centred_ND = _centred(features_ND)
    return Scatter(count=len(features_ND), mean_D=mean_D, scatter_DD=centred_ND.T @ centred_ND)


def merge(a: Scatter, b: Scatter) -> Scatter:
    """Raw moments of both parts' rows together (Chan's update); DataError when the two have different D.

    Merge in a fixed order: float addition is not associative, so another order changes the last bits.
    """
    _need_same_dim(a.mean_D, b.mean_D)
    count = a.count + b.count
    step_D = b.mean_D - a.mean_D
    between_DD = np.outer(step_D, step_D) * (a.count * b.count / count)
    return Scatter(
        count=count,
        mean_D=a.mean_D + step_D * (b.count / count),
        scatter_DD=a.scatter_DD + b.scatter_DD + between_DD,
    )


def frechet_distance(x: Moments, y: Moments) -> float:
    """Squared Fréchet distance of two Gaussians (paper Eq. 7; Heusel et al. 2017).

    x, y: moments over the same D features, float64. Returns a distance ≥ 0 in squared feature units: 0 for
    bit-equal moments (the distance is a metric), and the same bits for (y, x) as for (x, y). The count plays
    no part. Raises DataError when the two have different D.
    """
    _need_same_dim(x.mean_D, y.mean_D)
    key_x, key_y = _order_key(x), _order_key(y)
    if key_x == key_y:
        return 0.0
    # One order for both calls: the SVDs of A Bᵀ and of its transpose differ in their last bits.
    first, second = (x, y) if key_x < key_y else (y, x)
    cross_RR = first.factor_RD @ second.factor_RD.T
    nuclear_norm = float(np.linalg.svd(cross_RR, compute_uv=False).sum())
    between_means = float(np.square(first.mean_D - second.mean_D).sum())
    # Exactly ≥ 0; rounding may leave about −1e-13 of the traces for moments that are nearly equal.
    return between_means + max(first.trace + second.trace - 2.0 * nuclear_norm, 0.0)


def _order_key(m: Moments) -> tuple[int, bytes, bytes]:
    return len(m.factor_RD), m.mean_D.tobytes(), m.factor_RD.tobytes()


def _centred(features_ND: Doubles) -> tuple[Doubles, Doubles]:
    # Subtracting the first row first makes constant features exactly zero, whatever their size.
    shifted_ND = features_ND - features_ND[0]
    shift_D = shifted_ND.mean(axis=0)
    return features_ND[0] + shift_D, shifted_ND - shift_D


def _checked(features_ND: NDArray[Any]) -> Doubles:
    if features_ND.ndim != 2 or features_ND.shape[1] == 0:
        raise DataError(f"features have shape {features_ND.shape}; give one row per example, [N, D], D ≥ 1")
    features_ND = features_ND.astype(np.float64)
    bad_rows = np.flatnonzero(~np.isfinite(features_ND).all(axis=1))
    if len(bad_rows):
        raise DataError(
            f"row {bad_rows[0]} of the features is NaN or infinite ({len(bad_rows)} of {len(features_ND)} "
            "rows are); look at that image and at the extractor's weights"
        )
    return features_ND


def _need_two_rows(count: int) -> None:
    if count < 2:
        raise DataError(
            f"{count} feature rows have no covariance; a Fréchet distance needs at least 2 images"
        )


def _need_same_dim(mean_x: Doubles, mean_y: Doubles) -> None:
    if len(mean_x) != len(mean_y):
        raise DataError(
            f"features of {len(mean_x)} and of {len(mean_y)} dimensions cannot be compared; "
            "extract both with the same extractor"
        )

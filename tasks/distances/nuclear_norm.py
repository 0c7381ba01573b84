"""Compute the sum of a matrix's singular values: by the SVD, or twice as fast with a bound on the error.

The eigenvalues λ̂ of the computed Gram matrix C Cᵀ are those of the exact Gram matrix plus some error E,
‖E‖_F ≤ δ = (S + 16) ε ‖C‖_F²: half of S covers the rounding of the inner products (S u ‖C‖_F² with u = ε/2),
the rest covers the backward error of the symmetric eigensolver, a few ε ‖C‖_F². By Hoffman and Wielandt
Σ (λ − λ̂)² ≤ δ². With σ = √λ and |σ − σ̂| = |λ − λ̂| / (σ + σ̂), the values fall into two sets:

    λ̂ > δ    σ + σ̂ ≥ √(λ̂ − δ) + √λ̂ by Weyl, so Σ |σ − σ̂| ≤ δ √(Σ (√(λ̂ − δ) + √λ̂)⁻²) by Cauchy–Schwarz
    λ̂ ≤ δ    |σ − σ̂| ≤ √|λ − λ̂|, so K such values are off by at most K^¾ √δ together (Hölder)

to which 16 ε Σ σ̂ is added for the roots and their sum. Squaring costs accuracy only in directions that hardly
count, unless there are many of them or the sum is about to cancel; the bound says how much.

Shape letters: R and S sides of a matrix, R ≤ S once it is transposed. Sources: Golub and Van Loan, "Matrix
Computations", 4th ed., Sec. 2.7 (inner products) and 8.1 (both theorems).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, kw_only=True)
class NuclearNorm:
    """The sum of a matrix's singular values, and a bound on its error."""

    value: float
    error: float


def nuclear_norm_by_svd(matrix_RS: Doubles) -> float:
    """The sum of the singular values of any finite matrix, accurate to rounding of the largest."""
    return float(np.linalg.svd(matrix_RS, compute_uv=False).sum())


def nuclear_norm_by_gram(matrix_RS: Doubles) -> NuclearNorm:
    """The sum of the singular values, from the eigenvalues of the smaller Gram matrix, with a bound on its error.

    The matrix is scaled to unit norm by a power of two first, so that no square overflows or underflows.
    """
    if matrix_RS.shape[0] > matrix_RS.shape[1]:
        matrix_RS = matrix_RS.T
    largest = float(np.abs(matrix_RS).max(initial=0.0))
    if largest == 0.0:
        return NuclearNorm(value=0.0, error=0.0)
    scale = math.ldexp(1.0, math.frexp(largest)[1])
    scaled_RS = matrix_RS / scale
    values_R = np.linalg.eigvalsh(scaled_RS @ scaled_RS.T).clip(0.0)
    delta = (matrix_RS.shape[1] + 16) * EPSILON * float(values_R.sum())
    value = float(np.sqrt(values_R).sum())
    error = _error(values_R, delta) + 16 * EPSILON * value
    return NuclearNorm(value=scale * value, error=scale * error)


def _error(values_R: Doubles, delta: float) -> float:
    clear_L = values_R[values_R > delta]
    roots_L = np.sqrt(clear_L - delta) + np.sqrt(clear_L)
    unclear = len(values_R) - len(clear_L)
    return delta * math.sqrt(float((roots_L**-2).sum())) + math.pow(unclear, 0.75) * math.sqrt(delta)

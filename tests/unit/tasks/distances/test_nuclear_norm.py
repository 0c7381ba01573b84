"""Compare the fast nuclear norm with closed forms and the SVD: its error bound holds, and is useful."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.distances.nuclear_norm import nuclear_norm_by_gram, nuclear_norm_by_svd

Doubles = NDArray[np.float64]


def with_spectrum(seed: int, sigma_R: Doubles, columns: int) -> Doubles:
    """A matrix with given singular values between random orthogonal factors."""
    generator = np.random.default_rng(seed)
    left_RR = np.linalg.qr(generator.normal(size=(len(sigma_R), len(sigma_R))))[0]
    right_SR = np.linalg.qr(generator.normal(size=(columns, len(sigma_R))))[0]
    matrix_RS: Doubles = (left_RR * sigma_R) @ right_SR.T
    return matrix_RS


def random(shape: tuple[int, int]) -> Doubles:
    return np.random.default_rng(1).normal(size=shape)


HARD = {
    "one value": np.array([[3.0]]),
    "one row": random((1, 30)),
    "square": random((60, 60)),
    "wide": random((40, 90)),
    "tall": random((90, 40)),
    "falls to 1e-6": with_spectrum(2, np.geomspace(1.0, 1e-6, 60), 60),
    "falls to 1e-15": with_spectrum(3, np.geomspace(1.0, 1e-15, 60), 90),
    "one large": with_spectrum(4, np.r_[1e6, np.full(50, 1.0)], 80),
    "many at the edge": with_spectrum(5, np.r_[1.0, np.full(59, 1.5e-7)], 60),
    "many beyond it": with_spectrum(5, np.r_[1.0, np.full(59, 1e-8)], 60),
    "low rank": random((60, 3)) @ random((3, 70)),
    "rank 1": np.outer(np.arange(1.0, 50.0), np.ones(50)),
    "equal rows": np.repeat(random((10, 60)), 5, axis=0),
    "empty rows": np.r_[random((10, 60)), np.zeros((40, 60))],
    "huge": 1e300 * random((20, 30)),
    "tiny": 1e-300 * random((20, 30)),
}


@pytest.mark.parametrize("name", HARD)
def test_the_bound_holds_against_the_svd(name: str) -> None:
    fast, exact = nuclear_norm_by_gram(HARD[name]), nuclear_norm_by_svd(HARD[name])
    assert np.isfinite(fast.value)
    rounding_of_the_svd = 4e-16 * min(HARD[name].shape) * exact
    assert abs(fast.value - exact) <= fast.error + rounding_of_the_svd
    assert fast.error <= 1e-4 * exact  # the bound is useful even here


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_holds_for_random_spectra(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, more = generator.integers(1, 50, size=2)
    sigma_R = 10.0 ** generator.uniform(-generator.uniform(0.0, 18.0), 0.0, size=rows)
    matrix_RS = with_spectrum(seed, sigma_R, rows + more)
    fast = nuclear_norm_by_gram(matrix_RS)
    assert abs(fast.value - sigma_R.sum()) <= fast.error + 1e-15 * rows * sigma_R.sum()


def test_well_conditioned_matrices_have_tight_bounds_and_hard_ones_loose_ones() -> None:
    error = {name: nuclear_norm_by_gram(HARD[name]).error / nuclear_norm_by_svd(HARD[name]) for name in HARD}
    assert error["wide"] < 1e-12
    assert 1e-10 < error["falls to 1e-6"] < 1e-7
    assert error["low rank"] > 1e-7


def test_squaring_loses_small_singular_values() -> None:
    # 59 singular values of 1e-8 are lost in the rounding of 1² + ….
    matrix_RS = HARD["many beyond it"]
    assert abs(nuclear_norm_by_gram(matrix_RS).value - nuclear_norm_by_svd(matrix_RS)) > 1e-9


def test_orthogonal_and_diagonal_matrices_have_the_closed_form() -> None:
    orthogonal_DD = np.linalg.qr(random((30, 30)))[0]
    assert nuclear_norm_by_gram(orthogonal_DD).value == pytest.approx(30.0, rel=1e-13)
    assert nuclear_norm_by_gram(np.diag([3.0, -4.0, 0.5])).value == pytest.approx(7.5, rel=1e-14)


def test_a_power_of_two_scales_value_and_bound_in_every_bit() -> None:
    base, scaled = nuclear_norm_by_gram(random((20, 30))), nuclear_norm_by_gram(2.0**900 * random((20, 30)))
    assert (scaled.value, scaled.error) == (2.0**900 * base.value, 2.0**900 * base.error)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (3, 4)])
def test_the_norm_of_an_empty_or_zero_matrix_is_exactly_zero(shape: tuple[int, int]) -> None:
    fast = nuclear_norm_by_gram(np.zeros(shape))
    assert (fast.value, fast.error) == (0.0, 0.0)
    assert nuclear_norm_by_svd(np.zeros(shape)) == 0.0

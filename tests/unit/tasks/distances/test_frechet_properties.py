"""The laws of the Fréchet distance, for features that hypothesis makes up: degenerate ones above all."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torchmetrics.image.fid import _compute_fid  # private, but the very formula to equal

from tasks.distances.frechet import TOLERANCE, frechet_distance, moments

Doubles = NDArray[np.float64]

laws = hypothesis.settings(max_examples=80, deadline=None, derandomize=True, database=None)

# Few values: so equal rows, constant columns and equal environments come up often.
VALUES = st.sampled_from([-3.0, -1.0, 0.0, 0.1, 1.0, 2.5]) | st.floats(-10, 10, width=32)


@st.composite
def features(draw: st.DrawFn, *, sides: int) -> list[Doubles]:
    """Features of some environments with one D, each of 2 to 9 rows, D from 1 to 7."""
    dim = draw(st.integers(1, 7))
    return [draw(arrays(np.float64, (draw(st.integers(2, 9)), dim), elements=VALUES)) for _ in range(sides)]


@st.composite
def well_conditioned(draw: st.DrawFn) -> list[Doubles]:
    """Two sides with more rows than features, whose covariances have condition numbers up to about 100."""
    dim, seed = draw(st.integers(1, 8)), draw(st.integers(0, 2**32 - 1))
    spread = draw(st.floats(1.0, 5.0))
    generator = np.random.default_rng(seed)
    sides = []
    for _ in range(2):
        mixing_DD = np.linalg.qr(generator.normal(size=(dim, dim)))[0] * np.geomspace(1.0, spread, dim)
        rows = draw(st.integers(4 * dim + 20, 120))
        sides.append(generator.normal(size=(rows, dim)) @ mixing_DD + generator.normal(size=dim))
    return sides


def distance(x_ND: Doubles, y_ND: Doubles) -> float:
    return frechet_distance(moments(x_ND), moments(y_ND))


def slack(*sides: Doubles) -> float:
    """What rounding may leave of the squares that cancel."""
    return 1e-12 * sum(float(np.square(side).sum()) for side in sides) + 1e-13


def agrees(found: float, expected: float, *sides: Doubles) -> bool:
    return abs(found - expected) <= 2 * TOLERANCE * expected + slack(*sides)


@laws
@hypothesis.given(features(sides=2))
def test_it_is_symmetric_in_every_bit_and_never_negative_or_nan(sides: list[Doubles]) -> None:
    x_ND, y_ND = sides
    found = distance(x_ND, y_ND)
    assert found >= 0.0
    assert np.isfinite(found)
    assert found == distance(y_ND, x_ND)


@laws
@hypothesis.given(features(sides=1), st.randoms(use_true_random=False))
def test_it_is_zero_to_itself_and_rounding_to_its_rows_in_another_order(sides: list[Doubles], random) -> None:
    (x_ND,) = sides
    order = list(range(len(x_ND)))
    random.shuffle(order)
    assert distance(x_ND, x_ND) == 0.0
    assert distance(x_ND, x_ND[order]) <= slack(x_ND)


@laws
@hypothesis.given(features(sides=2), st.floats(-1e3, 1e3))
def test_translating_both_sides_changes_nothing(sides: list[Doubles], step: float) -> None:
    x_ND, y_ND = sides
    step_D = step * np.linspace(-1.0, 1.0, x_ND.shape[1])
    found = distance(x_ND + step_D, y_ND + step_D)
    assert agrees(found, distance(x_ND, y_ND), x_ND + step_D, y_ND + step_D)


@laws
@hypothesis.given(features(sides=1), st.floats(-1e3, 1e3))
def test_translating_one_side_away_is_the_squared_step(sides: list[Doubles], step: float) -> None:
    (x_ND,) = sides
    found = distance(x_ND, x_ND + step)
    assert agrees(found, step**2 * x_ND.shape[1], x_ND + step)


@laws
@hypothesis.given(features(sides=2), st.floats(1e-3, 1e3))
def test_scaling_both_sides_by_c_is_c_squared(sides: list[Doubles], c: float) -> None:
    x_ND, y_ND = sides
    assert agrees(distance(c * x_ND, c * y_ND), c**2 * distance(x_ND, y_ND), c * x_ND, c * y_ND)


@laws
@hypothesis.given(features(sides=2), st.integers(0, 2**32 - 1))
def test_rotating_or_mirroring_both_sides_changes_nothing(sides: list[Doubles], seed: int) -> None:
    x_ND, y_ND = sides
    dim = x_ND.shape[1]
    turn_DD = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]
    assert agrees(distance(x_ND @ turn_DD, y_ND @ turn_DD), distance(x_ND, y_ND), x_ND, y_ND)


@laws
@hypothesis.given(features(sides=2))
def test_a_feature_that_never_varies_changes_nothing(sides: list[Doubles]) -> None:
    x_ND, y_ND = sides
    padded = [np.c_[side, np.full(len(side), 0.7)] for side in sides]
    assert agrees(distance(*padded), distance(x_ND, y_ND), *padded)


@laws
@hypothesis.given(features(sides=2))
def test_it_lies_between_the_bounds_of_traces_and_means(sides: list[Doubles]) -> None:
    x, y = moments(sides[0]), moments(sides[1])
    between = float(np.square(x.mean_D - y.mean_D).sum())
    found, rounding = frechet_distance(x, y), slack(*sides)
    room = 2 * TOLERANCE * found + rounding
    assert between + (np.sqrt(x.trace) - np.sqrt(y.trace)) ** 2 - room <= found
    assert found <= between + x.trace + y.trace + room


@laws
@hypothesis.given(features(sides=3))
def test_its_root_keeps_the_triangle_inequality(sides: list[Doubles]) -> None:
    x_ND, y_ND, z_ND = sides
    direct, first, second = (np.sqrt(distance(*p)) for p in ((x_ND, z_ND), (x_ND, y_ND), (y_ND, z_ND)))
    assert direct <= (first + second) * (1 + TOLERANCE) + 3 * np.sqrt(slack(*sides))


@laws
@hypothesis.given(well_conditioned())
def test_it_equals_torchmetrics_and_sqrtm_where_they_are_well_conditioned(sides: list[Doubles]) -> None:
    x_ND, y_ND = sides
    found = distance(x_ND, y_ND)
    means = [side.mean(axis=0) for side in sides]
    covariances = [np.cov(side, rowvar=False).reshape(side.shape[1], -1) for side in sides]
    by_torchmetrics = _compute_fid(
        *(torch.from_numpy(a) for a in (means[0], covariances[0], means[1], covariances[1]))
    )
    root_DD = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    step_D = means[0] - means[1]
    by_sqrtm = step_D @ step_D + np.trace(covariances[0] + covariances[1] - 2 * root_DD)
    assert found == pytest.approx(float(by_torchmetrics), rel=1e-8, abs=1e-11)
    assert found == pytest.approx(float(by_sqrtm), rel=1e-8, abs=1e-11)

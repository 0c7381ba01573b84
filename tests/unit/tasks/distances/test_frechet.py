"""Compare the Fréchet distance with closed forms, SciPy's sqrtm and torchmetrics, and check its properties."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from torchmetrics.image.fid import FrechetInceptionDistance

from tasks.distances import frechet
from tasks.distances.frechet import (
    TOLERANCE,
    Moments,
    frechet_distance,
    merge,
    merge_in_order,
    moments,
    scatter,
)
from tasks.distances.nuclear_norm import nuclear_norm_by_gram
from tasks.errors import DataError

Doubles = NDArray[np.float64]

# Rows of both sides, and dimension: n < D, n > D, mixed, the smallest.
SIZES = [(30, 40, 64), (200, 300, 16), (20, 90, 32), (90, 20, 32), (2, 2, 8), (2, 50, 1), (33, 32, 32)]


def draw(seed: int, count: int, dim: int) -> Doubles:
    """Correlated features with unequal scales and a mean away from zero."""
    generator = np.random.default_rng(seed)
    mixing_DD = generator.normal(size=(dim, dim)) * np.geomspace(0.1, 3.0, dim)
    return generator.normal(size=(count, dim)) @ mixing_DD + 5.0 * generator.normal(size=dim)


def gaussian(mean_D: Doubles, covariance_DD: Doubles) -> Moments:
    """Moments with a given mean and covariance."""
    factor_DD: Doubles = np.linalg.cholesky(covariance_DD).T.astype(np.float64)
    return Moments(count=1000, mean_D=mean_D, factor_RD=factor_DD)


def by_sqrtm(x_ND: Doubles, y_ND: Doubles) -> float:
    """Eq. 7 as printed, with SciPy's matrix square root."""
    step_D = x_ND.mean(0) - y_ND.mean(0)
    sigma_x, sigma_y = np.cov(x_ND.T), np.cov(y_ND.T)
    root = scipy.linalg.sqrtm(sigma_x @ sigma_y)
    return float(step_D @ step_D + np.trace(sigma_x + sigma_y - 2 * root.real))


def test_diagonal_gaussians_have_the_closed_form() -> None:
    generator = np.random.default_rng(1)
    mean_x, mean_y = generator.normal(size=(2, 12))
    deviation_x, deviation_y = generator.uniform(0.1, 4.0, size=(2, 12))
    distance = frechet_distance(
        gaussian(mean_x, np.diag(deviation_x**2)), gaussian(mean_y, np.diag(deviation_y**2))
    )
    closed_form = np.sum((mean_x - mean_y) ** 2) + np.sum((deviation_x - deviation_y) ** 2)
    assert distance == pytest.approx(closed_form, rel=1e-12)


def test_full_covariances_agree_with_scipy() -> None:
    x_ND, y_ND = draw(2, 400, 24), draw(3, 500, 24)
    assert frechet_distance(moments(x_ND), moments(y_ND)) == pytest.approx(by_sqrtm(x_ND, y_ND), rel=1e-9)


@pytest.mark.parametrize(("count_x", "count_y", "dim"), [(300, 200, 16), (60, 80, 48), (20, 90, 32)])
def test_distance_agrees_with_torchmetrics(count_x: int, count_y: int, dim: int) -> None:
    x_ND, y_ND = draw(4, count_x, dim), draw(5, count_y, dim)

    class Identity(torch.nn.Module):
        num_features = dim

        def forward(self, features_ND: torch.Tensor) -> torch.Tensor:
            return features_ND

    metric = FrechetInceptionDistance(feature=Identity())
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(x_ND), real=True)
    metric.update(torch.from_numpy(y_ND), real=False)
    assert frechet_distance(moments(x_ND), moments(y_ND)) == pytest.approx(float(metric.compute()), rel=1e-3)


@pytest.mark.parametrize(("count_x", "count_y", "dim"), SIZES)
def test_factor_gives_the_unbiased_covariance(count_x: int, count_y: int, dim: int) -> None:
    x_ND = draw(6, count_x, dim)
    for m in (moments(x_ND), scatter(x_ND).moments()):
        covariance_DD = np.cov(x_ND.T).reshape(dim, dim)
        np.testing.assert_allclose(m.factor_RD.T @ m.factor_RD, covariance_DD, atol=1e-11 * m.trace)
        np.testing.assert_allclose(m.mean_D, x_ND.mean(0), rtol=1e-12)
        assert m.count == count_x
        assert m.trace == pytest.approx(np.trace(covariance_DD), rel=1e-12)
    assert len(moments(draw(7, count_y, dim)).factor_RD) == min(count_y - 1, dim)


@pytest.mark.parametrize(("count_x", "count_y", "dim"), SIZES)
def test_distance_to_itself_is_zero_and_distance_is_symmetric_in_every_bit(
    count_x: int, count_y: int, dim: int
) -> None:
    x, y = moments(draw(8, count_x, dim)), moments(draw(9, count_y, dim))
    assert frechet_distance(x, x) == 0.0
    assert frechet_distance(x, moments(draw(8, count_x, dim))) == 0.0
    assert frechet_distance(x, y) == frechet_distance(y, x) > 0.0


@pytest.mark.parametrize(("count_x", "count_y", "dim"), SIZES)
def test_distance_to_the_same_rows_in_another_order_is_a_rounding_error(
    count_x: int, count_y: int, dim: int
) -> None:
    x_ND = draw(10, count_x, dim)
    x, reversed_x = moments(x_ND), moments(x_ND[::-1])
    assert 0.0 <= frechet_distance(x, reversed_x) <= 1e-9 * x.trace


@pytest.mark.parametrize(("count_x", "count_y", "dim"), SIZES)
def test_translating_one_side_adds_the_squared_step(count_x: int, count_y: int, dim: int) -> None:
    x_ND, step_D = draw(11, count_x, dim), np.linspace(-3.0, 7.0, dim)
    distance = frechet_distance(moments(x_ND), moments(x_ND + step_D))
    assert distance == pytest.approx(step_D @ step_D, rel=1e-9)


@pytest.mark.parametrize(("count_x", "count_y", "dim"), SIZES)
def test_scaling_both_sides_by_s_multiplies_by_s_squared(count_x: int, count_y: int, dim: int) -> None:
    x_ND, y_ND = draw(12, count_x, dim), draw(13, count_y, dim)
    base = frechet_distance(moments(x_ND), moments(y_ND))
    assert frechet_distance(moments(3e4 * x_ND), moments(3e4 * y_ND)) == pytest.approx(9e8 * base, rel=1e-9)


@pytest.mark.parametrize(("count_x", "count_y", "dim"), SIZES)
def test_rotating_both_sides_changes_nothing(count_x: int, count_y: int, dim: int) -> None:
    x_ND, y_ND = draw(14, count_x, dim), draw(15, count_y, dim)
    rotation_DD = np.linalg.qr(np.random.default_rng(16).normal(size=(dim, dim)))[0]
    base = frechet_distance(moments(x_ND), moments(y_ND))
    turned = frechet_distance(moments(x_ND @ rotation_DD), moments(y_ND @ rotation_DD))
    assert turned == pytest.approx(base, rel=1e-9)


def test_features_of_barely_full_rank_agree_with_sqrtm() -> None:
    x_ND, y_ND = draw(17, 17, 16), draw(18, 40, 16)  # x has one row more than columns: barely full rank
    assert frechet_distance(moments(x_ND), moments(y_ND)) == pytest.approx(by_sqrtm(x_ND, y_ND), rel=1e-6)


def test_constant_features_have_exactly_zero_variance() -> None:
    constant = moments(np.full((7, 5), 0.1))
    assert constant.trace == 0.0
    assert frechet_distance(constant, moments(np.full((3, 5), 0.3))) == pytest.approx(5 * 0.2**2, rel=1e-12)
    other = moments(draw(19, 30, 5))
    step_D = other.mean_D - 0.1
    assert frechet_distance(constant, other) == pytest.approx(step_D @ step_D + other.trace, rel=1e-12)


def test_duplicate_rows_and_duplicate_columns_give_a_finite_distance() -> None:
    two_ND = draw(20, 2, 6)
    duplicates = moments(np.repeat(two_ND, [4, 9], axis=0))
    columns = moments(np.tile(draw(21, 50, 1), (1, 6)))
    assert np.isfinite(frechet_distance(duplicates, columns))
    assert frechet_distance(duplicates, columns) > 0.0


def test_float32_features_are_computed_in_float64() -> None:
    x_ND = draw(22, 50, 8).astype(np.float32)
    assert moments(x_ND).factor_RD.dtype == np.float64
    np.testing.assert_array_equal(moments(x_ND).factor_RD, moments(x_ND.astype(np.float64)).factor_RD)


@pytest.mark.parametrize("cuts", [(0, 1, 100), (0, 40, 41, 100), (0, 10, 20, 60, 100)])
def test_merged_parts_equal_the_whole(cuts: tuple[int, ...]) -> None:
    x_ND = draw(23, 100, 12) + 1e4  # far from zero: E[x²] − E[x]² would lose half its digits
    parts = [scatter(x_ND[i:j]) for i, j in itertools.pairwise(cuts)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merge(merged, part)
    whole = scatter(x_ND)
    assert merged.count == 100
    np.testing.assert_allclose(merged.mean_D, whole.mean_D, rtol=1e-14)
    np.testing.assert_allclose(merged.scatter_DD, whole.scatter_DD, rtol=1e-9, atol=1e-7)
    y = moments(draw(24, 80, 12))
    assert frechet_distance(merged.moments(), y) == pytest.approx(
        frechet_distance(moments(x_ND), y), rel=1e-9
    )


@pytest.mark.parametrize(("count_x", "count_y", "dim"), SIZES)
def test_moments_from_rows_products_and_merged_shards_give_the_same_distance(
    count_x: int, count_y: int, dim: int
) -> None:
    x_ND, y_ND = draw(28, count_x, dim), draw(29, count_y, dim)
    by_rows = frechet_distance(raw_rows(x_ND), raw_rows(y_ND))
    shards = merge_in_order(scatter(part) for part in np.array_split(x_ND, min(count_x, 4)))
    y = moments(y_ND)
    by_product = frechet_distance(moments(x_ND), y)
    assert by_product == pytest.approx(by_rows, rel=TOLERANCE)
    assert frechet_distance(shards.moments(), y) == pytest.approx(by_product, rel=1e-9)
    assert frechet_distance(shards.moments(), scatter(y_ND).moments()) == pytest.approx(by_product, rel=1e-9)


def raw_rows(x_ND: Doubles) -> Moments:
    """Moments with the centred rows as factor. They may exceed the rank: the worst case of the fast method."""
    mean_D = x_ND.mean(axis=0)
    return Moments(count=len(x_ND), mean_D=mean_D, factor_RD=(x_ND - mean_D) / np.sqrt(len(x_ND) - 1))


def test_shards_merge_to_the_same_bits_for_any_workers_and_order_of_arrival() -> None:
    parts = np.array_split(draw(30, 101, 12) + 1e3, 7)
    one_worker = merge_in_order(scatter(part) for part in parts)
    arrived = {shard: pickle.dumps(scatter(parts[shard].copy())) for shard in (5, 0, 6, 2, 1, 4, 3)}
    many_workers = merge_in_order(pickle.loads(arrived[shard]) for shard in range(7))
    for a, b in ((one_worker, many_workers), (one_worker.moments(), many_workers.moments())):
        for name, value in vars(a).items():
            assert np.array_equal(value, getattr(b, name)), name
    by_arrival = merge_in_order(pickle.loads(part) for part in arrived.values())
    assert not np.array_equal(one_worker.scatter_DD, by_arrival.scatter_DD)  # so the order of merging matters
    np.testing.assert_allclose(one_worker.scatter_DD, by_arrival.scatter_DD, rtol=1e-9, atol=1e-9)


def test_an_empty_list_of_shards_is_refused() -> None:
    with pytest.raises(DataError, match="at least one shard"):
        merge_in_order([])


def count_svds(monkeypatch: pytest.MonkeyPatch) -> list[Doubles]:
    seen: list[Doubles] = []
    by_svd = frechet.nuclear_norm_by_svd

    def spy(cross_RS: Doubles) -> float:
        seen.append(cross_RS)
        return by_svd(cross_RS)

    monkeypatch.setattr(frechet, "nuclear_norm_by_svd", spy)
    return seen


@pytest.mark.parametrize(("count_x", "count_y", "dim"), SIZES)
def test_the_fast_method_is_used_and_agrees_with_the_svd(
    monkeypatch: pytest.MonkeyPatch, count_x: int, count_y: int, dim: int
) -> None:
    x, y = moments(draw(31, count_x, dim)), moments(draw(32, count_y, dim))
    seen = count_svds(monkeypatch)
    fast = frechet_distance(x, y)
    assert not seen
    monkeypatch.setattr(frechet, "TOLERANCE", 0.0)
    exact = frechet_distance(x, y)
    assert len(seen) == 1
    assert fast == pytest.approx(exact, rel=1e-9)


def near(x_ND: Doubles) -> Doubles:
    return x_ND + 1e-6 * draw(34, *x_ND.shape)


def duplicates(x_ND: Doubles) -> Doubles:
    return np.repeat(x_ND[: len(x_ND) // 4] + 1e-3, 4, axis=0)


def reversed_rows(x_ND: Doubles) -> Doubles:
    return x_ND[::-1]


@pytest.mark.parametrize("change", [near, duplicates, reversed_rows])
def test_the_svd_is_used_where_the_error_of_squaring_exceeds_the_tolerance(
    monkeypatch: pytest.MonkeyPatch, change
) -> None:
    x_ND = draw(33, 64, 96)
    x, y = moments(x_ND), moments(change(x_ND))
    seen = count_svds(monkeypatch)
    distance = frechet_distance(x, y)
    assert len(seen) == 1
    assert 2 * nuclear_norm_by_gram(seen[0]).error > TOLERANCE * distance
    rest = x.trace + y.trace - 2 * np.linalg.svd(x.factor_RD @ y.factor_RD.T, compute_uv=False).sum()
    means = np.square(x.mean_D - y.mean_D).sum()
    assert distance == pytest.approx(means + max(rest, 0.0), rel=1e-12, abs=1e-12 * x.trace)


def test_every_distance_from_near_to_far_is_within_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    x_ND, other_ND = draw(35, 48, 64), draw(36, 48, 64)
    x = moments(x_ND)
    seen = count_svds(monkeypatch)
    fast_count = 0
    for step in np.geomspace(1e-7, 1.0, 15):
        y = moments(x_ND + step * other_ND)
        before = len(seen)
        found = frechet_distance(x, y)
        fast_count += len(seen) == before
        with monkeypatch.context() as patched:
            patched.setattr(frechet, "TOLERANCE", 0.0)
            exact = frechet_distance(x, y)
        assert abs(found - exact) <= TOLERANCE * exact + 1e-13 * x.trace
    assert 0 < fast_count < 15  # both methods were used


def test_a_row_that_is_not_finite_is_named() -> None:
    features_ND = draw(25, 9, 4)
    features_ND[6, 2] = np.nan
    features_ND[8, 0] = np.inf
    for reckon in (moments, scatter):
        with pytest.raises(DataError, match=r"row 6 of .*2 of 9 rows"):
            reckon(features_ND)
        with pytest.raises(DataError, match=r"row 6 \(image fog/0016.png\) of .*2 of 9 rows"):
            reckon(features_ND, names=[f"fog/{i:04d}.png" for i in range(10, 19)])
        with pytest.raises(DataError, match=r"row 6 \(image 160\)"):
            reckon(features_ND, names=np.arange(100, 190, 10))


def test_names_that_are_not_one_per_row_are_refused() -> None:
    with pytest.raises(DataError, match="8 names for 9 rows"):
        moments(draw(25, 9, 4), names=range(8))


def test_features_whose_squares_overflow_are_refused_and_tiny_ones_are_not() -> None:
    with pytest.raises(DataError, match=r"row 1 .* beyond 1e\+150"):
        moments(np.array([[1.0], [1e160]]))
    for scale in (1e-140, 1e140):
        x, y = moments(scale * draw(37, 9, 4)), moments(scale * draw(38, 9, 4))
        base = frechet_distance(moments(draw(37, 9, 4)), moments(draw(38, 9, 4)))
        assert frechet_distance(x, y) == pytest.approx(scale**2 * base, rel=1e-9)


def test_one_row_no_row_and_a_wrong_shape_are_refused() -> None:
    with pytest.raises(DataError, match="at least 2"):
        moments(np.zeros((1, 3)))
    with pytest.raises(DataError, match="at least 2"):
        scatter(np.zeros((1, 3))).moments()
    with pytest.raises(DataError, match="at least one row"):
        scatter(np.zeros((0, 3)))
    with pytest.raises(DataError, match=r"\[N, D\]"):
        moments(np.zeros((4, 3, 2)))


def test_different_dimensions_are_refused() -> None:
    x_ND, y_ND = draw(26, 9, 4), draw(27, 9, 5)
    with pytest.raises(DataError, match="4 and of 5 dimensions"):
        frechet_distance(moments(x_ND), moments(y_ND))
    with pytest.raises(DataError, match="4 and of 5 dimensions"):
        merge(scatter(x_ND), scatter(y_ND))


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (np.ones((4, 2)) + 1j, "features are complex128; give real numbers"),
        (np.full((4, 2), "1.0"), "features are <U3; give real numbers"),
        (np.full((4, 2), None), "features are object; give real numbers"),
        (np.ma.masked_less(np.arange(8.0).reshape(4, 2), 3), "masked array; drop the masked rows"),
        ([[1.0, 2.0], [3.0]], "features are not an array .*one row per example"),
    ],
)
@pytest.mark.parametrize("reckon", [moments, scatter])
def test_features_that_are_not_an_array_of_real_numbers_are_refused(reckon, features, said: str) -> None:
    with pytest.raises(DataError, match=said):
        reckon(features)


def test_lists_of_rows_are_accepted() -> None:
    x_ND = draw(0, 5, 3)
    np.testing.assert_array_equal(moments(x_ND.tolist()).factor_RD, moments(x_ND).factor_RD)

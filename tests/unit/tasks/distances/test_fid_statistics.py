"""Compare intervals and FID∞ with repeated rows, NumPy's least-squares fit, and Gaussians of known distance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.distances import intervals as fid_statistics
from tasks.distances.frechet import frechet_distance, moments
from tasks.distances.intervals import Extrapolation, bootstrap_interval, fid_infinity
from tasks.errors import ConfigError, DataError

Doubles = NDArray[np.float64]

# Rows fewer than features on both sides, on one, on none.
REGIMES = [(12, 15, 24), (12, 60, 24), (60, 12, 24), (60, 50, 6), (2, 3, 4)]


def draw(seed: int, count: int, dim: int) -> Doubles:
    """Correlated features with a mean away from zero."""
    generator = np.random.default_rng(seed)
    mixing_DD = generator.normal(size=(dim, dim)) * np.geomspace(0.3, 2.0, dim)
    return generator.normal(size=(count, dim)) @ mixing_DD + 5.0 * generator.normal(size=dim)


def two_gaussians(seed: int, count: int, dim: int) -> tuple[Doubles, Doubles]:
    """Samples of two Gaussians with diagonal covariances."""
    generator = np.random.default_rng(seed)
    x_ND, y_ND = generator.normal(size=(2, count, dim))
    return x_ND, 0.3 + y_ND * np.linspace(0.5, 1.5, dim)


def true_distance(dim: int) -> float:
    """The closed-form distance of `two_gaussians`."""
    return float(dim * 0.3**2 + np.square(np.linspace(0.5, 1.5, dim) - 1.0).sum())


def plain(x_ND: Doubles, y_ND: Doubles) -> float:
    return frechet_distance(moments(x_ND), moments(y_ND))


@pytest.mark.parametrize(("count_x", "count_y", "dim"), REGIMES)
def test_the_distance_of_counts_equals_that_of_repeated_rows(count_x: int, count_y: int, dim: int) -> None:
    x_ND, y_ND = draw(1, count_x, dim), draw(2, count_y, dim)
    of_counts = fid_statistics._distance_of_counts(x_ND, y_ND)
    generator = np.random.default_rng(3)
    for _ in range(5):
        rows_x, rows_y = (generator.integers(count, size=count) for count in (count_x, count_y))
        counts_x, counts_y = (
            np.bincount(rows, minlength=n) for rows, n in ((rows_x, count_x), (rows_y, count_y))
        )
        found, expected = of_counts(counts_x, counts_y), plain(x_ND[rows_x], y_ND[rows_y])
        assert found == pytest.approx(expected, rel=1e-8)
        assert found != pytest.approx(plain(x_ND, y_ND), rel=1e-3)


def test_a_single_row_drawn_repeatedly_has_no_covariance() -> None:
    x_ND, y_ND = draw(4, 2, 5), draw(5, 3, 5)
    found = fid_statistics._distance_of_counts(x_ND, y_ND)(np.array([2, 0]), np.array([0, 0, 3]))
    assert found == pytest.approx(np.square(x_ND[0] - y_ND[2]).sum(), rel=1e-12)


def test_constant_features_have_an_interval_of_zero_width() -> None:
    found = bootstrap_interval(np.full((5, 3), 0.1), np.full((4, 3), 0.3), seed=1, resamples=40)
    for value in (found.distance, found.low, found.high):
        assert value == pytest.approx(3 * 0.2**2, rel=1e-12)
    assert found.standard_error < 1e-15


def test_draws_depend_only_on_the_seed() -> None:
    x_ND, y_ND = draw(6, 12, 24), draw(7, 15, 24)
    first = bootstrap_interval(x_ND, y_ND, seed=1, resamples=40)
    np.random.default_rng(0).normal()
    assert bootstrap_interval(x_ND, y_ND, seed=1, resamples=40) == first
    assert bootstrap_interval(x_ND, y_ND, seed=2, resamples=40) != first
    line, again = (fid_infinity(*two_gaussians(1, 30, 4), seed=1) for _ in range(2))
    assert (line.limit, line.slope) == (again.limit, again.slope)
    assert fid_infinity(*two_gaussians(1, 30, 4), seed=2).limit != line.limit


def test_float32_features_are_computed_in_float64() -> None:
    x_ND, y_ND = draw(6, 12, 8).astype(np.float32), draw(7, 15, 8).astype(np.float32)
    found = bootstrap_interval(x_ND, y_ND, seed=1, resamples=40)
    assert found == bootstrap_interval(x_ND.astype(float), y_ND.astype(float), seed=1, resamples=40)
    assert found.distance == plain(x_ND, y_ND)


def test_the_methods_are_plain_shifted_and_reflected_quantiles() -> None:
    x_ND, y_ND = draw(8, 30, 6), draw(9, 40, 6)
    centred, basic, percentile = (
        bootstrap_interval(x_ND, y_ND, seed=1, resamples=60, method=method)
        for method in ("centred", "basic", "percentile")
    )
    distance, bias = percentile.distance, percentile.bias
    assert bias > 0.0
    assert replace(centred, low=0, high=0, method="basic") == replace(basic, low=0, high=0)
    assert (centred.low, centred.high) == pytest.approx((percentile.low - bias, percentile.high - bias))
    assert (basic.low, basic.high) == pytest.approx(
        (2 * distance - percentile.high, 2 * distance - percentile.low)
    )


def test_the_ends_are_quantiles_of_resampled_distances() -> None:
    x_ND, y_ND = draw(10, 20, 4), draw(11, 20, 4)
    wide, narrow = (
        bootstrap_interval(x_ND, y_ND, seed=1, level=level, resamples=200, method="percentile")
        for level in (0.95, 0.5)
    )
    assert wide.low < narrow.low < narrow.high < wide.high
    # The ends are also close to the quantiles of independent resamples of the rows.
    generator = np.random.default_rng(5)
    drawn = [
        plain(x_ND[generator.integers(20, size=20)], y_ND[generator.integers(20, size=20)])
        for _ in range(400)
    ]
    spread = float(np.std(drawn))
    assert wide.standard_error == pytest.approx(spread, rel=0.2)
    for found, level in ((narrow.low, 0.25), (narrow.high, 0.75)):
        assert found == pytest.approx(np.quantile(drawn, level), abs=0.35 * spread)


def coverage(
    count: int, dim: int, *, target: float, method: fid_statistics.Method, trials: int = 30
) -> float:
    """The fraction of samples whose interval contains the target."""
    hits = 0
    for seed in range(trials):
        found = bootstrap_interval(
            *two_gaussians(seed, count, dim), seed=seed, resamples=80, level=0.9, method=method
        )
        hits += found.low <= target <= found.high
    return hits / trials


def test_basic_covers_the_true_distance_if_rows_far_outnumber_features() -> None:
    assert coverage(40, 4, target=true_distance(4), method="basic") >= 0.75
    assert coverage(40, 4, target=true_distance(4), method="percentile") <= 0.5


def test_centred_covers_the_mean_distance_at_the_same_number_of_rows_even_below_features() -> None:
    average = float(np.mean([plain(*two_gaussians(1000 + seed, 12, 24)) for seed in range(300)]))
    assert coverage(12, 24, target=average, method="centred") >= 0.75
    assert coverage(12, 24, target=average, method="percentile") <= 0.4


def test_no_method_covers_the_true_distance_if_rows_are_fewer_than_features() -> None:
    for method in ("basic", "centred", "percentile"):  # the docstring warns of this
        assert coverage(12, 24, target=true_distance(24), method=method, trials=10) <= 0.3


@pytest.mark.parametrize(("count_x", "count_y", "dim"), [(60, 60, 16), (60, 90, 16), (40, 40, 64)])
def test_fid_infinity_is_nearer_to_the_truth_than_the_distance(count_x: int, count_y: int, dim: int) -> None:
    errors = []
    for seed in range(12):
        x_ND, y_ND = two_gaussians(seed, max(count_x, count_y), dim)
        found = fid_infinity(x_ND[:count_x], y_ND[:count_y], seed=seed)
        assert found.slope > 0.0
        errors.append((found.limit - true_distance(dim), found.distance - true_distance(dim)))
    limit, distance = np.sqrt(np.square(errors).mean(axis=0))
    assert limit < 0.6 * distance


def test_fid_infinity_is_the_least_squares_line_through_distances_of_half_to_all_rows() -> None:
    x_ND, y_ND = two_gaussians(3, 41, 10)
    found = fid_infinity(x_ND, y_ND, seed=4)
    assert found.sizes_P[0] == 20
    assert found.sizes_P[-1] == 41
    # The last point has all rows, so it does not depend on the draw.
    assert found.distances_P[-1] == pytest.approx(found.distance, rel=1e-9)
    (slope, limit), covariance = np.polyfit(1.0 / found.sizes_P, found.distances_P, 1, cov=True)
    assert found.limit == pytest.approx(limit, rel=1e-9)
    assert found.slope == pytest.approx(slope, rel=1e-9)
    assert found.standard_error == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-9)


def test_sides_of_unequal_size_are_drawn_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int]] = []
    real = fid_statistics._distance_of_counts

    def spy(x_ND: Doubles, y_MD: Doubles):
        of_counts = real(x_ND, y_MD)

        def distance(counts_N, counts_M) -> float:
            assert set(counts_N) | set(counts_M) <= {0, 1}  # without replacement
            drawn.append((int(counts_N.sum()), int(counts_M.sum())))
            return of_counts(counts_N, counts_M)

        return distance

    monkeypatch.setattr(fid_statistics, "_distance_of_counts", spy)
    x_ND, y_ND = two_gaussians(5, 80, 3)
    found: Extrapolation = fid_infinity(x_ND[:20], y_ND, seed=1, points=11)
    assert drawn == [(size, 4 * size) for size in range(10, 21)]
    assert found.sizes_P.tolist() == list(range(10, 21))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"level": 0.0}, r"level=0\.0 is outside 0\.\.1"),
        ({"level": 1.0}, r"level=1\.0 is outside 0\.\.1"),
        ({"level": float("nan")}, "level=nan is outside"),
        ({"resamples": 0}, "resamples=0 are too few .* at least 40"),
        ({"resamples": 199, "level": 0.99}, "resamples=199 .* at least 200"),
        ({"method": "basik"}, "no method 'basik'; did you mean 'basic'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        bootstrap_interval(draw(12, 5, 3), draw(13, 5, 3), seed=1, **settings)


def test_a_line_through_two_points_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"points=2; .* at least 3"):
        fid_infinity(draw(12, 30, 3), draw(13, 30, 3), seed=1, points=2)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"19 rows are too few .* at least 20"):
        fid_infinity(draw(14, 30, 3), draw(15, 19, 3), seed=1)
    for count in (0, 1):
        with pytest.raises(DataError, match="at least 2 images"):
            bootstrap_interval(draw(14, 5, 3), draw(15, count, 3), seed=1)


def test_bad_features_are_refused_with_their_names() -> None:
    x_ND, y_ND = draw(16, 30, 3), draw(17, 30, 3)
    y_ND[4, 1] = np.nan
    for reckon in (bootstrap_interval, fid_infinity):
        with pytest.raises(DataError, match=r"row 4 \(image 1004\)"):
            reckon(x_ND, y_ND, seed=1, names_y=range(1000, 1030))
        with pytest.raises(DataError, match="3 and of 4 dimensions"):
            reckon(x_ND, draw(18, 30, 4), seed=1)


@pytest.mark.parametrize(("count", "dim"), [(30, 40), (60, 5)])
def test_features_too_large_for_finite_statistics_are_refused(count: int, dim: int) -> None:
    x_ND, y_ND = draw(0, count, dim), draw(1, count, dim)
    for scale in (1e100, 1e149):
        for estimate in (bootstrap_interval, fid_infinity):
            with pytest.raises(DataError, match=r"beyond 1e\+70"):
                estimate(scale * x_ND, y_ND, seed=0)
    scale = 1e70 / np.abs(x_ND).max()
    interval = bootstrap_interval(scale * x_ND, y_ND, seed=0, resamples=40)
    line = fid_infinity(scale * x_ND, y_ND, seed=0)
    found = (
        interval.low,
        interval.high,
        interval.bias,
        interval.standard_error,
        line.limit,
        line.standard_error,
    )
    assert np.isfinite(found).all()

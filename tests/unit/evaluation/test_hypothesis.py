"""Test correlations of gain and distance against SciPy, closed forms, enumeration and planted relations."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.stats import spearmanr

from metarepair.evaluation.hypothesis import (
    STATISTICS,
    Floats,
    Study,
    correlate,
    correlate_target,
    different,
    less_target_means,
    over_all_pairs,
    spearman,
    summarise,
    within_targets,
)
from metarepair.reports.hypothesis_figure import scatter
from metarepair.reports.hypothesis_table import describe, pairs_table, write_pairs
from tasks.keys import keyed_generator

NAMES = ("gaussian_noise", "shot_noise", "glass_blur", "snow", "fog", "contrast")


def made_matrices(count: int = 12, *, key: str = "matrices") -> tuple[Floats, Floats]:
    """Return noisy distances between points on a line, and gains that are unrelated to them."""
    generator = keyed_generator(key, count)
    places_C, others_C = generator.normal(size=(2, count))
    distances = np.abs(places_C[:, None] - places_C) + 0.1 * generator.random((count, count))
    gains = 0.5 - 0.1 * np.abs(others_C[:, None] - others_C) + 0.1 * generator.random(count)
    return distances, gains


def made_study(seeds: tuple[int, ...] = (0, 1)) -> Study:
    distances, _ = made_matrices(len(NAMES))
    noise = 0.01 * keyed_generator("noise").random((len(seeds), *distances.shape))
    return Study(
        names=NAMES,
        seeds=seeds,
        extractor="deployed",
        distances_CC=distances,
        gains_SCC=0.7 - 0.1 * distances + noise,
    )


def test_spearman_is_scipys_row_by_row_with_ties() -> None:
    x = keyed_generator("x").integers(5, size=(7, 20)).astype(float)
    y = keyed_generator("y").integers(5, size=(7, 20)).astype(float)
    expected = [spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(spearman(x, y), expected, atol=1e-12)


def test_spearman_leaves_out_pairs_with_a_missing_value() -> None:
    x, y = keyed_generator("xy").normal(size=(2, 9))
    expected = spearmanr(x[2:8], y[2:8]).statistic
    x[:2], y[8] = np.nan, np.nan
    assert float(spearman(x, y)) == pytest.approx(expected, abs=1e-12)


def test_values_that_differ_by_rounding_are_tied() -> None:
    y = np.array([0.1 + 0.2, 0.3, 0.6])
    assert y[0] != y[1]
    assert float(spearman(np.array([1.0, 2.0, 3.0]), y)) == pytest.approx(3**0.5 / 2)


@pytest.mark.parametrize("name", STATISTICS)
def test_a_planted_monotone_relation_has_correlation_minus_one(name: str) -> None:
    angles_C = 2 * np.pi * np.arange(12) / 12  # on a circle, so that all targets have the same mean
    distances = np.abs(np.exp(1j * angles_C[:, None]) - np.exp(1j * angles_C))
    found = correlate(STATISTICS[name], distances, np.exp(-distances), seed=0, resamples=200)
    assert found.rho == pytest.approx(-1)
    assert found.high is not None
    # In a resample the targets no longer share one mean, so subtracting it disturbs the order a little.
    assert found.high < -0.8 if name == "less_target_means" else found.high == pytest.approx(-1)
    assert found.p == pytest.approx(1 / 201)


@pytest.mark.parametrize("name", STATISTICS)
def test_where_there_is_no_relation_the_interval_covers_0(name: str) -> None:
    drawn = [made_matrices(10, key=f"unrelated {i}") for i in range(40)]
    found = [correlate(STATISTICS[name], d, g, seed=0, resamples=100) for d, g in drawn]
    covers = [f.low is not None and f.high is not None and f.low < 0 < f.high for f in found]
    small = [f.p is not None and f.p <= 0.05 for f in found]
    assert sum(covers) >= 34
    assert sum(small) <= 6


def test_the_difficulty_of_a_target_does_not_hide_the_relation_within_it() -> None:
    distances, _ = made_matrices()
    gains = -0.01 * distances + 10 * keyed_generator("hard").permutation(len(distances))
    d, g = different(distances), different(gains)
    assert abs(float(over_all_pairs(d, g))) < 0.5
    assert float(less_target_means(d, g)) < -0.7
    assert float(within_targets(d, g)) == pytest.approx(-1)


def test_the_interval_uses_all_pairs_of_different_resampled_corruptions() -> None:
    distances, gains = made_matrices(7)
    found = correlate(over_all_pairs, distances, gains, seed=3, resamples=50)
    draws = keyed_generator("hypothesis-bootstrap", 3).integers(7, size=(50, 7))
    plain = []
    for drawn in draws:
        pairs = [(distances[i, j], gains[i, j]) for i in drawn for j in drawn if i != j]
        plain.append(spearmanr(*zip(*pairs, strict=True)).statistic)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])))


def test_p_is_the_share_of_permutations_of_corruptions_that_correlate_as_strongly() -> None:
    distances, gains = made_matrices(5)
    d, g = different(distances), different(gains)
    every = [float(over_all_pairs(d[np.ix_(p, p)], g)) for p in map(list, permutations(range(5)))]
    exact = np.mean(np.abs(every) >= abs(float(over_all_pairs(d, g))) - 1e-12)
    found = correlate(over_all_pairs, distances, gains, seed=0)
    assert 0.1 < exact < 0.9
    assert found.p == pytest.approx(exact, abs=0.04)


def test_draws_are_keyed_by_the_seed() -> None:
    distances, gains = made_matrices(6)
    first, again, other = (
        correlate(within_targets, distances, gains, seed=s, resamples=100) for s in (0, 0, 1)
    )
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)
    one, same, another = (
        correlate_target(distances[1:, 0], gains[1:, 0], target=t, seed=0, resamples=100)
        for t in ("fog", "fog", "snow")
    )
    assert one == same
    assert (one.low, one.high, one.p) != (another.low, another.high, another.p)


@pytest.mark.parametrize("name", STATISTICS)
def test_a_corruption_with_itself_is_no_pair(name: str) -> None:
    distances, gains = made_matrices()
    expected = correlate(STATISTICS[name], distances, gains, seed=0, resamples=100)
    np.fill_diagonal(distances, 0.0)
    np.fill_diagonal(gains, 1.0)
    assert correlate(STATISTICS[name], distances, gains, seed=0, resamples=100) == expected


def test_a_target_has_the_correlation_of_its_experiences() -> None:
    x, y = np.arange(8.0), np.array([9.0, 7, 8, 6, 5, 3, 4, 1])
    found = correlate_target(x, y, target="fog", seed=0, resamples=500)
    assert found.rho == pytest.approx(spearmanr(x, y).statistic)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.rho < found.high < -0.5
    assert found.p is not None
    assert found.p < 0.01


def test_gains_that_are_all_equal_have_no_correlation_and_still_make_json() -> None:
    study = made_study()
    summary = summarise(replace(study, gains_SCC=np.zeros_like(study.gains_SCC)), seed=0)
    text = json.dumps(summary, allow_nan=False)
    assert json.loads(text)["correlations"]["all_pairs"]["rho"] is None
    assert "–" in describe(summary)
    assert scatter(replace(study, gains_SCC=np.zeros_like(study.gains_SCC)), summary)


def test_the_summary_agrees_with_the_matrices() -> None:
    study = made_study()
    summary = summarise(study, seed=0)
    gains, distances = study.gains_SCC.mean(axis=0), study.distances_CC
    assert summary["pairs"] == 30
    expected = correlate(over_all_pairs, distances, gains, seed=0)
    assert summary["correlations"]["all_pairs"] == asdict(expected)
    fog = summary["targets"]["fog"]
    others = [0, 1, 2, 3, 5]
    nearest = min(others, key=lambda i: distances[i, 4])
    best = max(others, key=lambda i: gains[i, 4])
    assert (fog["nearest"], fog["nearest_gain"]) == (NAMES[nearest], pytest.approx(gains[nearest, 4]))
    assert (fog["best"], fog["best_gain"]) == (NAMES[best], pytest.approx(gains[best, 4]))
    assert fog["mean_gain"] == pytest.approx(gains[others, 4].mean())
    assert fog["same_corruption_gain"] == pytest.approx(gains[4, 4])
    noise_and_weather = [gains[0, 1], gains[1, 0], gains[3, 4], gains[4, 3]]
    assert summary["mean_gain"]["same_category"] == pytest.approx(np.mean(noise_and_weather))
    assert summary["mean_gain"]["same_corruption"] == pytest.approx(np.trace(gains) / 6)


def test_the_table_has_a_row_for_every_ordered_pair(tmp_path: Path) -> None:
    study = made_study()
    files = write_pairs(tmp_path, pairs_table(study))
    assert files == ["pairs.parquet", "pairs.csv"]
    rows = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert pyarrow.csv.read_csv(tmp_path / "pairs.csv").to_pylist() == rows
    assert {(r["experience"], r["target"]) for r in rows} == set(permutations(NAMES, 2))
    row = next(r for r in rows if (r["experience"], r["target"]) == ("snow", "fog"))
    per_seed = study.gains_SCC[:, 3, 4]
    assert [row["gain_seed_0"], row["gain_seed_1"]] == per_seed.tolist()
    assert (row["gain"], row["gain_sd"]) == pytest.approx((per_seed.mean(), per_seed.std(ddof=1)))
    others = [r["gain"] for r in rows if r["target"] == "fog"]
    assert row["relative_gain"] == pytest.approx(row["gain"] - np.mean(others))
    assert (row["experience_category"], row["target_category"]) == ("weather", "weather")
    assert (row["distance"], row["extractor"]) == (study.distances_CC[3, 4], "deployed")


def test_one_seed_has_no_spread() -> None:
    assert pairs_table(made_study(seeds=(5,)))["gain_sd"].null_count == 30


def test_the_printed_table_names_every_target_and_the_distance() -> None:
    summary = summarise(made_study(), seed=0)
    text = describe(summary)
    assert "Fréchet distance in the deployed DNN's features" in text
    assert "mean over 2 seeds" in text
    rho = summary["correlations"]["all_pairs"]["rho"]
    assert f"over all pairs                 {rho:6.2f}" in text
    for name, found in summary["targets"].items():
        line = next(x for x in text.splitlines() if x.split()[:1] == [name])
        assert f"{found['nearest']} {100 * found['nearest_gain']:.1f}, {found['best']}" in line


def orange_below_the_legend(study: Study) -> int:
    """Count the pixels in the colour of same-category pairs, below the legend."""
    picture = Image.open(io.BytesIO(scatter(study, summarise(study, seed=0)))).convert("RGB")
    return int((np.asarray(picture)[50:] == (0xD5, 0x5E, 0x00)).all(axis=-1).sum())


def test_the_figure_marks_pairs_of_one_category() -> None:
    assert orange_below_the_legend(made_study()) > 100


def test_the_figure_marks_nothing_where_no_two_are_of_one_category() -> None:
    names = ("gaussian_noise", "glass_blur", "fog", "contrast", "pixelate")
    study = made_study()
    apart = replace(
        study, names=names, distances_CC=study.distances_CC[:5, :5], gains_SCC=study.gains_SCC[:, :5, :5]
    )
    assert orange_below_the_legend(apart) == 0

"""Check large and oblong images: memory is proportional to their pixels, and results equal those of whole filters."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest

from tasks.corruptions import CORRUPTIONS, blur, corrupt, digital, plasma, weather
from tasks.corruptions.severity import Dose
from tasks.errors import DataError
from tasks.keys import iter_keyed_generators


def scene(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, size=(5, 6, 3)).astype(np.float32)
    grown = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(grown + rng.normal(0, 6, size=grown.shape), 0, 255).astype(np.uint8)[None]


def corrupted(images, name, *, severity=3, seed=0, table="imagenet"):
    ids = range(len(images))
    return corrupt(images, image_ids_B=ids, corruption=name, severity=severity, seed=seed, table=table)


def dose_for(keys):
    return Dose(
        constants=(), native_size=224, frost_scale=1.0, rngs=iter_keyed_generators("test", last=range(keys))
    )


def peak_bytes_per_value(images, name):
    """The peak memory of a second call, in bytes per value; the first call fills the cached tables."""
    corrupted(images[:, :64, :64], name)
    tracemalloc.start()
    try:
        changed = corrupted(images, name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert changed.shape == images.shape
    assert not np.array_equal(changed, images)
    return peak / images.size


@pytest.mark.slow
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_photograph_takes_at_most_48_bytes_for_each_of_its_values(name):
    assert peak_bytes_per_value(scene(1500, 2000), name) < 48


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_strip_takes_at_most_100_bytes_for_each_of_its_values(name):
    assert peak_bytes_per_value(scene(8, 20_000), name) < 100


def whole(monkeypatch):
    """Make images of any size use the filters of small ones."""
    monkeypatch.setattr(blur, "WHOLE_PIXELS", 2**40)
    monkeypatch.setattr(digital, "WHOLE_PIXELS", 2**40)


@pytest.mark.parametrize("shape", [(270, 250), (8, 8200)])
@pytest.mark.parametrize("severity", [1, 5])
def test_zooming_one_by_one_equals_zooming_by_the_matrix_within_a_level(severity, shape, monkeypatch):
    images = np.concatenate([scene(*shape, seed=seed) for seed in (1, 2)])
    with monkeypatch.context() as patched:
        patched.setattr(blur, "zoom_blur_matrix", None)  # an image this large must not need it
        one_by_one = corrupted(images, "zoom_blur", severity=severity).astype(int)
    whole(monkeypatch)
    difference = np.abs(one_by_one - corrupted(images, "zoom_blur", severity=severity))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_splitting_zoom_blur_into_strips_does_not_change_the_result(monkeypatch):
    images = scene(300, 260)
    at_once = corrupted(images, "zoom_blur")
    monkeypatch.setattr(blur, "STRIP_VALUES", 7 * 260 * 3)
    assert np.array_equal(corrupted(images, "zoom_blur"), at_once)


@pytest.mark.parametrize(("height", "width"), [(300, 500), (460, 310)])
def test_elastic_smoothing_on_a_coarser_grid_equals_the_whole_one_within_a_level(height, width, monkeypatch):
    images = scene(height, width)
    sides = []
    with monkeypatch.context() as patched:
        taps = blur.gaussian_taps
        patched.setattr(
            digital, "gaussian_taps", lambda *a, **k: sides.append(len(taps(*a, **k))) or taps(*a, **k)
        )
        coarse = corrupted(images, "elastic_transform", severity=1).astype(int)
    assert sides, "the coarser grid was taken"
    assert max(sides) <= 6 * digital.CELLS_PER_SIGMA + 3  # whatever the image's size
    whole(monkeypatch)
    difference = np.abs(coarse - corrupted(images, "elastic_transform", severity=1))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


def test_shifts_smoothed_on_a_coarser_grid_differ_by_little_of_their_spread():
    shifts = np.random.default_rng(1).uniform(-1, 1, (1, 400, 500, 2)).astype(np.float32)
    expected = blur.smooth(shifts, 200.0, mode="reflect", truncate=3.0)
    got = digital.smooth_shifts(shifts, 200.0)
    assert not np.array_equal(got, expected)
    assert np.abs(got - expected).max() < 0.03 * expected.std()


def test_a_window_of_a_plasma_equals_that_of_the_whole_without_fine_shocks(monkeypatch):
    """Make a coarse grid of 16 in full; with zero shocks, finer cells are means in both."""
    monkeypatch.setattr(plasma, "FULL_CELLS", 16)
    coarse = np.random.default_rng(0).uniform(0, 1, 16**2 - 1).astype(np.float32)

    def uniforms(shape, dose):
        drawn = np.full(shape, 0.5, np.float32)
        drawn[:, : len(coarse)] = coarse
        return drawn

    monkeypatch.setattr(plasma, "uniforms", uniforms)
    full = plasma.plasma(1, None, size=128, decay=2.0)
    for height, width in ((8, 128), (9, 90), (97, 11), (65, 64)):
        window = plasma.plasma_window(1, None, size=128, height=height, width=width, decay=2.0)
        assert window == pytest.approx(full[:, :height, :width], abs=1e-5)


def test_a_window_of_a_plasma_has_the_statistics_of_the_whole_at_every_distance(monkeypatch):
    monkeypatch.setattr(plasma, "FULL_CELLS", 16)
    count, width = 400, 120
    window = plasma.plasma_window(count, dose_for(count), size=128, height=9, width=width, decay=1.7)
    full = plasma.plasma(count, dose_for(count), size=128, decay=1.7)[:, :9, :width]
    assert window.min() >= 0
    assert window.max() <= 1
    assert window.mean() == pytest.approx(full.mean(), abs=0.02)
    assert window.std() == pytest.approx(full.std(), rel=0.05)
    for distance in (1, 2, 3, 5, 8, 21):
        steps = [np.abs(p[:, :, distance:] - p[:, :, :-distance]).mean() for p in (window, full)]
        assert steps[0] == pytest.approx(steps[1], rel=0.05)
    down = [np.abs(np.diff(p, axis=1)).mean(axis=(0, 2)) for p in (window, full)]
    assert down[0] == pytest.approx(down[1], rel=0.1)


def test_only_a_plasma_much_larger_than_its_image_is_made_as_a_window(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("cut")

    monkeypatch.setattr(plasma, "plasma_window", refuse)
    for height, width in ((8, 512), (512, 512), (600, 800)):
        assert plasma.haze((1, height, width), dose_for(1), decay=2.0).shape == (1, height, width)
    with pytest.raises(AssertionError, match="cut"):
        plasma.haze((1, 64, 1100), dose_for(1), decay=2.0)


@pytest.mark.parametrize("size", [(150, 3000), (1100, 700), (340, 120)])
def test_a_window_of_frost_equals_that_of_the_whole_texture_within_a_level(size):
    texture = weather.photograph(2)
    resized = cv2.resize(texture, size[::-1]).astype(int)
    for top, left in ((0, 0), (size[0] - 40, size[1] - 55), (31, 17)):
        window = slice(top, top + 40), slice(left, left + 55)
        assert np.abs(weather.frost_window(texture, size, window) - resized[window]).max() <= 1


@pytest.mark.parametrize(("name", "side"), [("elastic_transform", 32_767), ("jpeg_compression", 65_501)])
def test_a_side_beyond_the_limit_of_the_library_is_refused_with_the_limit(name, side):
    assert corrupted(np.zeros((1, 8, 20_000), np.uint8), name).shape == (1, 8, 20_000)
    for shape in ((1, 8, side), (1, side, 8)):
        with pytest.raises(DataError, match=rf"{name} takes sides of up to {side - 1:,} pixels"):
            corrupted(np.zeros(shape, np.uint8), name)

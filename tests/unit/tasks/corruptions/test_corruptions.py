"""Check that corruptions give the same bytes anywhere, follow the published definitions, and explain errors."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from tasks.corruptions import CORRUPTIONS, category_of, corrupt, resolve, severity_table
from tasks.corruptions.blur import disk_kernel, glass_sources, smooth, streak, zoom_blur_matrix
from tasks.corruptions.digital import affine_map, anchor_points
from tasks.corruptions.severity import TABLES, Dose, load_table
from tasks.errors import ConfigError, DataError
from tasks.keys import iter_keyed_generators, keyed_generator

NAMES = tuple(CORRUPTIONS)
DETERMINISTIC = (
    "brightness",
    "contrast",
    "saturate",
    "gaussian_blur",
    "defocus_blur",
    "zoom_blur",
    "pixelate",
    "jpeg_compression",
)
RANDOM = tuple(name for name in NAMES if name not in DETERMINISTIC)
NOISES = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")


def scenes(count, *, height=32, width=32, seed=0):
    """Smooth coloured scenes with an edge and some texture rather than noise, so that blur has structure to blur."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, size=(count, 5, 6, 3)).astype(np.float32)
    grown = np.stack([cv2.resize(c, (width, height), interpolation=cv2.INTER_CUBIC) for c in coarse])
    grown[:, height // 2 :, : width // 3] *= 0.3
    return np.clip(grown + rng.normal(0, 6, size=grown.shape), 0, 255).astype(np.uint8)


def corrupted(images, name, *, severity=3, seed=0, ids=None, table="cifar"):
    ids = np.arange(len(images)) if ids is None else ids
    return corrupt(images, image_ids_B=ids, corruption=name, severity=severity, seed=seed, table=table)


def digest_of_everything():
    images = scenes(3)
    digest = hashlib.sha256()
    for name, severity in itertools.product(NAMES, (1, 5)):
        digest.update(corrupted(images, name, severity=severity, seed=7).tobytes())
    return digest.hexdigest()


# The same bytes anywhere


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("name", NAMES)
def test_the_result_for_an_image_is_the_same_alone_in_a_batch_and_in_any_order(name, severity):
    images = scenes(23)
    ids = np.arange(100, 123)
    together = corrupted(images, name, severity=severity, ids=ids)
    order = np.random.default_rng(3).permutation(23)
    shuffled = corrupted(images[order], name, severity=severity, ids=ids[order])
    assert np.array_equal(shuffled, together[order])
    for i in (0, 9, 22):
        alone = corrupted(images[i : i + 1], name, severity=severity, ids=ids[i : i + 1])
        assert np.array_equal(alone[0], together[i])


@pytest.mark.parametrize("name", NAMES)
def test_splitting_a_large_batch_into_chunks_does_not_change_the_result(name, monkeypatch):
    images = scenes(11)
    whole = corrupted(images, name)
    monkeypatch.setattr("tasks.corruptions.CHUNK_VALUES", 2 * 32 * 32 * 3)
    assert np.array_equal(corrupted(images, name), whole)


def test_a_fresh_process_gives_the_same_bytes_with_any_number_of_threads():
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('corruption_tests', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.digest_of_everything())\n"
    )
    for threads in ("1", "4"):
        fresh = subprocess.run(
            [sys.executable, "-c", code, __file__],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=120,
            env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
        )
        assert fresh.stdout.strip() == digest_of_everything()


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_threads_does_not_change_the_result(name):
    images = scenes(1, height=300, width=420)
    threads = cv2.getNumThreads()
    found = []
    try:
        for number in (1, 2, 5):
            cv2.setNumThreads(number)
            found.append(corrupted(images, name, severity=4, table="imagenet").tobytes())
    finally:
        cv2.setNumThreads(threads)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", RANDOM)
def test_another_id_or_seed_gives_another_draw(name):
    images = np.repeat(scenes(1), 8, axis=0)
    first = corrupted(images, name)
    assert len({image.tobytes() for image in first}) > 1
    assert not np.array_equal(corrupted(images, name, seed=1), first)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_corruption_that_draws_nothing_ignores_id_and_seed(name):
    images = scenes(3)
    assert np.array_equal(corrupted(images, name, seed=1, ids=[7, 8, 9]), corrupted(images, name))


@pytest.mark.parametrize("name", NAMES)
def test_every_severity_changes_the_images_and_not_the_input_array(name):
    images = scenes(6)
    before = images.copy()
    for severity in range(1, 6):
        changed = corrupted(images, name, severity=severity)
        assert changed.shape == images.shape
        assert changed.dtype == np.uint8
        assert not np.array_equal(changed, images)
        assert np.array_equal(images, before)
        assert not np.shares_memory(changed, images)


@pytest.mark.parametrize("name", NAMES)
def test_read_only_and_non_contiguous_input_works(name):
    wide = scenes(4, width=64)
    view = wide[::2, :, ::-2]
    view.setflags(write=False)
    assert np.array_equal(corrupted(view, name), corrupted(np.ascontiguousarray(view), name))


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_gives_an_empty_batch(name):
    assert corrupted(np.empty((0, 32, 32, 3), np.uint8), name, ids=[]).shape == (0, 32, 32, 3)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", NAMES)
def test_small_and_oblong_images_work_with_every_table(name, table):
    for height, width in ((8, 8), (9, 40), (50, 33)):
        images = scenes(2, height=height, width=width)
        assert corrupted(images, name, severity=5, table=table).shape == images.shape


@pytest.mark.parametrize("name", NAMES)
def test_images_of_224_pixels_work_with_the_largest_table(name):
    images = scenes(1, height=224, width=224)
    changed = corrupted(images, name, severity=3, table="imagenet")
    assert not np.array_equal(changed, images)


@pytest.mark.parametrize("name", NAMES)
def test_grey_images_are_corrupted_as_their_rgb_copies(name):
    grey = scenes(5)[..., :1]
    got = corrupted(grey, name)
    assert np.array_equal(corrupted(grey[..., 0], name), got[..., 0])
    if name in NOISES:  # noise is drawn per channel
        noise = (got.astype(float) - grey).std()
        coloured = np.repeat(grey, 3, axis=3)
        assert noise == pytest.approx((corrupted(coloured, name).astype(float) - coloured).std(), rel=0.15)
        return
    as_rgb = corrupted(np.repeat(grey, 3, axis=3), name).astype(float)
    luma = as_rgb @ [0.299, 0.587, 0.114]
    unclipped = (as_rgb > 0).all(axis=3) & (as_rgb < 255).all(axis=3)
    assert np.abs(luma - got[..., 0])[unclipped].max() <= 2
    assert np.abs(luma - got[..., 0]).mean() < 0.5
    assert name == "saturate" or not np.array_equal(got, grey)


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    name=st.sampled_from(NAMES),
    table=st.sampled_from(TABLES),
    severity=st.integers(1, 5),
    height=st.integers(8, 70),
    width=st.integers(8, 70),
    channels=st.sampled_from([(), (1,), (3,)]),
    layout=st.sampled_from(["plain", "reversed", "channels first", "every other", "read-only"]),
    pixels=st.sampled_from(["random", "black", "white"]),
)
def test_any_size_any_layout_and_any_pixels_give_what_a_plain_copy_alone_gives(
    name, table, severity, height, width, channels, layout, pixels
):
    shape = (3, height, width, *channels)
    values = {"random": np.random.default_rng(0).integers(0, 256, shape), "black": 0, "white": 255}[pixels]
    plain = np.broadcast_to(np.asarray(values, np.uint8), shape).copy()
    images = laid_out(plain, layout)
    got = corrupted(images, name, severity=severity, table=table, ids=[4, 5, 6])
    assert got.shape == shape
    assert got.dtype == np.uint8
    alone = corrupted(plain[1:2], name, severity=severity, table=table, ids=[5])
    assert np.array_equal(got[1:2], alone)


def laid_out(images, layout):
    """The same images in another memory layout."""
    if layout == "reversed":
        return np.ascontiguousarray(images[:, ::-1])[:, ::-1]
    if layout == "channels first":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(images, -1, 1)), 1, -1)
    if layout == "every other":
        return np.repeat(images, 2, axis=2)[:, :, ::2]
    images = images.copy()
    images.setflags(write=layout != "read-only")
    return images


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    dtype=st.sampled_from(["bool", "int8", "uint16", "int32", "int64", "float16", "float32", "float64"]),
    shape=st.lists(st.integers(0, 12), min_size=0, max_size=5),
)
def test_every_other_type_of_array_is_refused_whatever_its_shape(dtype, shape):
    with pytest.raises(DataError, match=f"images are {dtype}; corruptions take uint8"):
        corrupted(np.zeros(shape, dtype), "fog", ids=[0])


# Parts of corruptions, compared with closed forms and other libraries (whole corruptions: test_reference.py)


def test_zoom_blur_has_the_published_number_of_levels():
    levels = [len(np.arange(*row)) for row in severity_table("cifar")["zoom_blur"]]
    assert levels == [7, 12, 16, 21, 26]
    rows = zoom_blur_matrix(32, 32, start=1, stop=1.06, step=0.01).sum(axis=1)
    assert np.allclose(rows, 1, atol=1e-6)


def test_the_defocus_kernel_sums_to_one_and_grows_with_the_radius():
    kernels = [disk_kernel(*row) for row in severity_table("imagenet")["defocus_blur"]]
    # Disks of radius 8 and 10 touch the edge of their grid, and smoothing mirrors there; the published code does so.
    assert [k.sum() for k in kernels] == pytest.approx([1, 1, 1, 1.013, 1.011], abs=1e-3)
    sides = [len(k) for k in kernels]
    assert sides == sorted(sides)


def dose_of(*keys, constants=(), table="cifar"):
    """A dose for images keyed by `keys`, and the 16-bit words that it will draw [len(keys), 20,000]."""
    facts = load_table(table)
    raw = [keyed_generator("test", key).bit_generator.random_raw(5000).view(np.uint16) for key in keys]
    dose = Dose(
        constants=constants,
        native_size=facts.native_size,
        frost_scale=facts.frost_scale,
        rngs=iter_keyed_generators("test", last=keys),
    )
    return dose, np.stack(raw)


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("max_delta", [1, 2, 3, 4])
def test_glass_sources_equal_those_of_copying_pixels_one_by_one(max_delta, passes):
    height, width = 21, 16
    rows = range(max_delta + 1, height - max_delta + 1)
    columns = range(max_delta + 1, width - max_delta + 1)
    dose, words = dose_of(5, 6)
    got = glass_sources(2, height, width, dose=dose, max_delta=max_delta, passes=passes)
    drawn = words[:, : 2 * passes * len(rows) * len(columns)].astype(float) / 2**16
    drawn = np.floor(drawn * 2 * max_delta).astype(int) - max_delta
    drawn = drawn.reshape(2, passes, 2, len(rows), len(columns))
    for image, number in itertools.product(range(2), range(passes)):
        if number == 0:
            expected = np.arange(height * width).reshape(height, width)
        for h, w in itertools.product(reversed(rows), reversed(columns)):
            down, right = drawn[image, number, :, h - rows.start, w - columns.start]
            expected[h, w] = expected[h + down, w + right]
        if number == passes - 1:
            assert np.array_equal(got[image], expected.ravel())
    assert not np.array_equal(got[0], got[1])


def test_a_reused_generator_draws_as_a_fresh_one_for_each_key():
    keys = [3, -1, 3, 2**70]
    turned = [
        (g.random(3), g.integers(9, size=2, dtype=np.int32))
        for g in iter_keyed_generators("x", 5, "fog", last=keys)
    ]
    for (floats, integers), key in zip(turned, keys, strict=True):
        fresh = keyed_generator("x", 5, "fog", key)
        assert np.array_equal(floats, fresh.random(3))
        assert np.array_equal(integers, fresh.integers(9, size=2, dtype=np.int32))


def test_a_streak_of_a_dot_is_a_one_sided_gaussian_along_the_angle():
    dot = np.zeros((41, 41), np.uint8)
    dot[20, 20] = 200
    weights = np.exp(-(np.arange(13) ** 2) / (2 * 2.0**2))
    expected = 200 * weights / weights.sum()
    flat = streak(dot, radius=6, sigma=2, degrees=0)
    assert flat[20, 20:7:-1] == pytest.approx(expected, abs=1e-3)
    assert flat.sum() == pytest.approx(200, abs=1e-2)
    steep = streak(dot, radius=6, sigma=2, degrees=-90)
    assert steep[20:33, 20] == pytest.approx(expected, abs=1e-3)


def test_a_streak_longer_than_the_image_keeps_a_flat_image():
    flat = np.full((32, 32, 3), 77, np.uint8)
    assert np.allclose(streak(flat, radius=60, sigma=30, degrees=33), 77, atol=1e-3)


def test_a_long_streak_is_the_sum_of_its_shifted_copies_at_any_angle():
    image = scenes(1, height=40, width=29)[0]
    weights = np.exp(-(np.arange(31) ** 2) / (2 * 12.0**2))
    weights /= weights.sum()
    framed = np.pad(image.astype(float), ((40, 40), (40, 40), (0, 0)), mode="edge")
    for degrees in (-135, -100.3, -90, -44, 0, 21.7, 45, 135):
        expected = np.zeros(image.shape)
        for step, weight in enumerate(weights):
            down = 40 + math.ceil(step * math.sin(math.radians(degrees)) - 0.5)
            right = 40 + math.ceil(step * math.cos(math.radians(degrees)) - 0.5)
            expected += weight * framed[down : down + 40, right : right + 29]
        assert streak(image, radius=15, sigma=12, degrees=degrees) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.0, 2.5, 9.0, 40.0])
@pytest.mark.parametrize("mode", ["nearest", "reflect"])
def test_smoothing_equals_that_of_scipy_for_any_sigma(sigma, mode):
    layers = scenes(2, height=8, width=31)
    got = smooth(layers, sigma, mode=mode, truncate=3.0)
    expected = gaussian_filter(layers.astype(float), (0, sigma, sigma, 0), mode=mode, truncate=3.0)
    assert got == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixelate_equals_the_box_filter_of_pillow_to_the_byte(table, channels):
    rng = np.random.default_rng(5)
    for height, width in ((8, 8), (9, 31), (32, 32), (64, 47), (33, 100), (224, 130)):
        images = rng.integers(0, 256, (2, height, width, channels), dtype=np.uint8)
        for severity, (scale,) in enumerate(severity_table(table)["pixelate"], start=1):
            got = corrupted(images, "pixelate", severity=severity, table=table)
            for image, changed in zip(images, got, strict=True):
                small = int(width * scale), int(height * scale)
                shrunk = Image.fromarray(image.squeeze()).resize(small, Image.Resampling.BOX)
                grown = np.asarray(shrunk.resize((width, height), Image.Resampling.BOX))
                assert np.array_equal(changed.squeeze(), grown)


def test_the_affine_map_of_elastic_takes_three_points_to_three_others():
    points = anchor_points(32, 40)
    assert points.tolist() == [[30, 26], [30, 6], [10, 6]]
    moved = points + np.random.default_rng(1).uniform(-2.5, 2.5, size=(3, 2))
    expected = cv2.getAffineTransform(moved.astype(np.float32), points.astype(np.float32))
    assert affine_map(moved, points) == pytest.approx(expected, abs=1e-4)


# Random draws have the published distribution


def grey_noise(name, severity, level=128):
    grey = np.full((40, 32, 32, 3), level, np.uint8)
    return corrupted(grey, name, severity=severity).astype(np.float64) - level


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_noise_at_mid_grey_spreads_as_its_constant_says(severity):
    table = severity_table("cifar")
    x = 128 / 255
    expected = {
        "gaussian_noise": table["gaussian_noise"][severity - 1][0],
        "speckle_noise": x * table["speckle_noise"][severity - 1][0],
        "shot_noise": math.sqrt(x / table["shot_noise"][severity - 1][0]),
    }
    for name, spread in expected.items():
        noise = grey_noise(name, severity)
        assert noise.std() == pytest.approx(255 * spread, rel=0.02), name
        assert abs(noise.mean() + 0.5) < 0.3, name  # truncation subtracts half a level on average


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_impulse_noise_hits_the_published_fraction_half_of_it_white(severity):
    (amount,) = severity_table("cifar")["impulse_noise"][severity - 1]
    noise = grey_noise("impulse_noise", severity)
    assert set(np.unique(noise)) == {-128, 0, 127}
    assert (noise == 127).mean() == pytest.approx(amount / 2, rel=0.1)
    assert (noise == -128).mean() == pytest.approx(amount / 2, rel=0.1)


def test_fog_keeps_black_black_and_hazes_a_grey_image_between_its_bounds():
    assert not corrupted(np.zeros((2, 32, 32, 3), np.uint8), "fog").any()
    (strength, _) = severity_table("cifar")["fog"][2]
    hazed = corrupted(np.full((4, 32, 32, 3), 100, np.uint8), "fog").astype(float)
    darkest = 100 * 100 / (100 + 255 * strength)
    assert hazed.min(axis=(1, 2, 3)) == pytest.approx(darkest, abs=1)
    assert hazed.max(axis=(1, 2, 3)) == pytest.approx(100, abs=1)


@pytest.mark.parametrize("name", NAMES)
def test_a_corrupted_image_is_still_nearest_to_its_own_original(name):
    images = scenes(10)

    def standardised(batch):
        flat = batch.reshape(len(batch), -1).astype(float)
        flat = flat - flat.mean(axis=1, keepdims=True)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    similarity = standardised(corrupted(images, name)) @ standardised(images).T
    assert np.array_equal(similarity.argmax(axis=1), np.arange(10))


# Names, tables, errors


def test_all_nineteen_corruptions_have_a_category_and_a_unique_short_name():
    by_category = {}
    for corruption in CORRUPTIONS.values():
        by_category.setdefault(corruption.category, []).append(corruption.short)
    assert by_category == {
        "noise": ["GN", "SN", "IN", "SKN"],
        "blur": ["DB", "GB", "MB", "ZM", "GAB"],
        "weather": ["SW", "FR", "FOG", "SP"],
        "image_property": ["BR", "CT", "SA"],
        "digital": ["ET", "PIX", "JPEG"],
    }
    assert all(name == corruption.name for name, corruption in CORRUPTIONS.items())


@pytest.mark.parametrize("table", TABLES)
def test_every_table_has_every_corruption_at_five_severities(table):
    constants = severity_table(table)
    assert set(constants) == set(CORRUPTIONS)
    for rows in constants.values():
        assert len(rows) == 5
        assert len({len(row) for row in rows}) == 1


@pytest.mark.parametrize("table", TABLES)
def test_the_constants_are_the_published_ones(table):
    fixture = Path(__file__).parents[3] / "fixtures" / "published_constants.json"
    published = json.loads(fixture.read_text(encoding="utf-8"))[table]
    assert load_table(table).native_size == published["image_size"]
    assert load_table(table).frost_scale == published["frost_resize"]
    for name, rows in severity_table(table).items():
        assert [list(row) for row in rows] == published["constants"].pop(name), name
    assert not published["constants"]


def test_a_caller_that_changes_its_severity_table_does_not_change_ours():
    severity_table("cifar").clear()
    assert "fog" in severity_table("cifar")


def test_names_resolve_in_any_case():
    assert resolve("gn") == resolve("GN") == resolve("Gaussian_Noise") == "gaussian_noise"
    assert resolve("zm") == "zoom_blur"
    assert category_of("SKN") == "noise"
    images = scenes(2)
    assert np.array_equal(corrupted(images, "FOG"), corrupted(images, "fog"))


def test_an_unknown_name_is_refused_with_near_names():
    with pytest.raises(ConfigError, match=r"no corruption 'gausian_noise'; did you mean 'gaussian_noise'"):
        resolve("gausian_noise")
    with pytest.raises(ConfigError, match=r"no severity table 'cifar10'; did you mean 'cifar'"):
        corrupted(scenes(1), "fog", table="cifar10")


@pytest.mark.parametrize("severity", [1.0, True, "1", None])
def test_a_severity_that_is_not_an_integer_is_refused(severity):
    with pytest.raises(ConfigError, match="is not an integer"):
        corrupted(scenes(1), "fog", severity=severity)


@pytest.mark.parametrize("seed", [1.5, True, "1", None])
def test_a_seed_that_is_not_an_integer_is_refused(seed):
    with pytest.raises(ConfigError, match=r"seed=.* is not an integer"):
        corrupted(scenes(1), "fog", seed=seed)


@pytest.mark.parametrize("name", [None, 3, ("fog",), ["fog"], {"fog": 1}])
def test_a_name_that_is_not_a_string_is_refused_with_the_valid_names(name):
    with pytest.raises(ConfigError, match=r"There are: .*fog"):
        corrupted(scenes(1), name)
    with pytest.raises(ConfigError, match=r"There are: cifar"):
        corrupted(scenes(1), "fog", table=name)


def test_ids_and_seeds_of_any_size_and_sign_give_different_draws():
    image = scenes(1)
    ids = [np.array([i]) for i in (0, -1, 2**63 - 1)] + [np.array([2**64 - 1], np.uint64)]
    outcomes = {corrupted(image, "snow", ids=i, seed=s).tobytes() for i in ids for s in (0, -1, 2**80)}
    assert len(outcomes) == 12


def test_a_batch_may_mix_ids_of_more_than_64_bits_with_others():
    images = scenes(3)
    ids = [0, 2**63, -(2**90)]
    together = corrupted(images, "snow", ids=ids)
    for i, image_id in enumerate(ids):
        assert np.array_equal(corrupted(images[i : i + 1], "snow", ids=[image_id])[0], together[i])


def test_ids_may_be_integers_of_any_type():
    images = scenes(3)
    expected = corrupted(images, "snow", ids=np.arange(3))
    for ids in (
        range(3),
        (0, np.uint8(1), np.int64(2)),
        np.array([0, 1, 2], object),
        np.arange(3, dtype=np.int8),
    ):
        assert np.array_equal(corrupted(images, "snow", ids=ids), expected)


@pytest.mark.parametrize("severity", [0, 6, 7, -1])
def test_a_severity_outside_one_to_five_is_refused(severity):
    with pytest.raises(ConfigError, match=rf"severity={severity} is outside 1\.\.5"):
        corrupted(scenes(1), "fog", severity=severity)


@pytest.mark.parametrize(
    ("images", "ids", "message"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), [0, 1], "images are float32"),
        (np.full((2, 32, 32, 3), np.nan, np.float64), [0, 1], "6144 of these values are NaN"),
        (np.zeros((2, 32, 32, 3), np.int64), [0, 1], "images are int64"),
        ([[0]], [0], "images are list"),
        (np.zeros((32, 32), np.uint8), [0], r"shape \[32, 32\]"),
        (np.zeros((2, 32, 32, 4), np.uint8), [0, 1], r"shape \[2, 32, 32, 4\]"),
        (np.zeros((2, 3, 32, 32), np.uint8), [0, 1], r"shape \[2, 3, 32, 32\]"),
        (np.zeros((2, 4, 32, 3), np.uint8), [0, 1], "at least 8x8"),
        (np.zeros((2, 32, 32, 3), np.uint8), [0], "one id per image"),
        (
            np.zeros((2, 32, 32, 3), np.uint8),
            [0.0, 1.0],
            "image id 0.0 is not an integer but float; give integers",
        ),
        (np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2), "image ids are float64; give integers"),
        (np.zeros((2, 32, 32, 3), np.uint8), [0, None], "image id None is not an integer"),
        (np.zeros((2, 32, 32, 3), np.uint8), [0, True], "image id True is not an integer but bool"),
        (np.zeros((2, 32, 32, 3), np.uint8), ["0", "1"], "image id '0' is not an integer"),
        (np.zeros((2, 32, 32, 3), np.uint8), [[0], [1]], r"image ids have shape \[2, 1\]"),
        (np.ma.masked_less(np.zeros((2, 32, 32, 3), np.uint8), 5), [0, 1], "masked array"),
    ],
)
def test_images_or_ids_of_a_wrong_type_or_shape_are_refused(images, ids, message):
    with pytest.raises(DataError, match=message):
        corrupted(images, "fog", ids=ids)

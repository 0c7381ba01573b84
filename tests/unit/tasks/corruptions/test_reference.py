"""Compare corruptions with a second, independent implementation: equal without randomness, else in distribution.

The reference (benchmarks/corruption_reference.py) takes the definitions literally, one image at a time.
"""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
from scipy.stats import ks_2samp

from benchmarks.corruption_reference import REFERENCE, table_facts
from tasks.corruptions import CORRUPTIONS, corrupt, severity_table
from tasks.datasets import load_dataset

# B images, H W C pixels, Q statistics of an image
SIZES = {"cifar": 32, "tinyimagenet": 64, "imagenet": 96}
FIXED = (
    "brightness",
    "contrast",
    "saturate",
    "gaussian_blur",
    "defocus_blur",
    "zoom_blur",
    "pixelate",
    "jpeg_compression",
)
DRAWN = tuple(name for name in CORRUPTIONS if name not in FIXED)
ALL_SEVERITIES = (1, 2, 3, 4, 5)
SPECTRUM_BANDS = 6


def scenes(count, *, height, width, seed):
    """Smooth coloured scenes with an edge and some texture; the first has black, white and grey patches."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, size=(count, 5, 6, 3)).astype(np.float32)
    grown = np.stack([cv2.resize(c, (width, height), interpolation=cv2.INTER_CUBIC) for c in coarse])
    grown[:, height // 2 :, : width // 3] *= 0.3
    images = np.clip(grown + rng.normal(0, 6, size=grown.shape), 0, 255).astype(np.uint8)
    images[0, :4, :4], images[0, 4:8, :4], images[0, 8:12, :4] = 0, 255, 97
    return images


def greys(count, *, size):
    return np.full((count, size, size, 3), 128, np.uint8)


def by_ours(images, name, *, table, severity):
    ids = np.arange(len(images))
    return corrupt(images, image_ids_B=ids, corruption=name, severity=severity, seed=11, table=table)


def by_reference(images, name, *, table, severity, sample=0):
    rng = np.random.default_rng([zlib.crc32(f"{name} {table}".encode()), severity, sample])
    constants, facts = severity_table(table)[name][severity - 1], table_facts(table)
    return np.stack([REFERENCE[name](image, constants, rng=rng, facts=facts) for image in images])


# Without randomness: the same grey levels


# The mean of five equal weights is a whole level for every fifth sum, less a few millionths lost to the softened
# rim of the kernel. Ours adds a thousandth of a level before truncation, so that float32 loses no level.
ON_THE_CUT = {("defocus_blur", "cifar", 4), ("defocus_blur", "tinyimagenet", 2)}


@pytest.mark.parametrize("severity", ALL_SEVERITIES)
@pytest.mark.parametrize(
    ("table", "height", "width"),
    [
        ("cifar", 32, 32),
        ("cifar", 24, 41),
        ("tinyimagenet", 64, 64),
        ("tinyimagenet", 64, 50),
        ("imagenet", 96, 96),
        ("imagenet", 101, 150),
        ("imagenet", 224, 224),
    ],
)
@pytest.mark.parametrize("name", FIXED)
def test_a_corruption_without_randomness_is_within_a_grey_level_of_the_definition(
    name, table, height, width, severity
):
    images = scenes(2, height=height, width=width, seed=height + width)
    got = by_ours(images, name, table=table, severity=severity).astype(int)
    expected = by_reference(images, name, table=table, severity=severity).astype(int)
    # float32 differs from float64 before truncation: by one level at most, and rarely.
    assert np.abs(got - expected).max() <= 1
    assert (got != expected).mean() < (0.2 if (name, table, severity) in ON_THE_CUT else 0.01)


# With randomness: the same distribution


@functools.cache
def band_masks(size):
    """Masks of six rings of spatial frequency, from 0 to the corners of the plane, without the mean."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    edges = np.linspace(0, 0.5, SPECTRUM_BANDS)
    ring = np.digitize(frequency, [*edges[1:], np.inf])
    ring[0, 0] = -1
    return [ring == k for k in range(SPECTRUM_BANDS)]


def statistics(changed, clean):
    """Statistics of each image's change [B, Q]: mean by channel, mean size, spread, and amplitude in six bands."""
    change = changed.astype(np.float64) - clean
    power = np.abs(np.fft.fft2(change, axes=(1, 2))).mean(axis=3) ** 2 / change[0, ..., 0].size
    amplitude = [np.sqrt(power[:, mask].mean(axis=1)) for mask in band_masks(change.shape[1])]
    flat = change.reshape(len(change), -1)
    means = change.mean(axis=(1, 2)).T
    return np.stack([*means, np.abs(flat).mean(axis=1), flat.std(axis=1), *amplitude], axis=1)


@dataclass(frozen=True)
class Comparison:
    """The difference of two samples of the same images, as multiples of what is allowed: above 1 they differ."""

    apart_Q: np.ndarray

    @property
    def worst(self):
        return float(self.apart_Q.max())


STANDARD_ERRORS = 5.0
LEVEL_SLACK, RELATIVE_SLACK = 0.02, 0.01


def compare(first_BQ, second_BQ):
    """Compare the means of paired differences over the images with five standard errors and a small slack.

    Pairing by image removes the variation between images. Under the same distribution a difference is
    symmetric about 0, so the tail of its t-value is no heavier than Student's. With at least 24 images,
    five standard errors are exceeded by chance once in 20,000; the draws are fixed, so a pass is repeatable.
    The slack, a fiftieth of a grey level and 1 % of the statistic, covers different rounding (float32,
    normals from 16-bit words, one more rounding in snow).
    """
    difference_BQ = first_BQ - second_BQ
    error_Q = difference_BQ.std(axis=0, ddof=1) / np.sqrt(len(difference_BQ))
    slack_Q = LEVEL_SLACK + RELATIVE_SLACK * np.abs(second_BQ.mean(axis=0))
    return Comparison(np.abs(difference_BQ.mean(axis=0)) / (STANDARD_ERRORS * error_Q + slack_Q))


def num_scenes(name, table):
    """Enough images to distinguish a severity from the next. The reference of glass blur is 40 times slower."""
    if name == "glass_blur":
        return {"cifar": 60, "tinyimagenet": 24, "imagenet": 24}[table]
    if name in ("frost", "elastic_transform"):  # a few draws change the whole image
        return {"cifar": 800, "tinyimagenet": 160, "imagenet": 40}[table]
    return {"cifar": 200, "tinyimagenet": 80, "imagenet": 40}[table]


def named_tables(*tables):
    """Every random corruption with every table; glass blur is marked slow, as its reference is on large images."""
    return [
        pytest.param(name, table, marks=[pytest.mark.slow] if name == "glass_blur" else [])
        for name in DRAWN
        for table in tables
    ]


def samples(name, table, *, severity, reference_severity=None):
    size = SIZES[table]
    images = scenes(num_scenes(name, table), height=size, width=size, seed=5)
    ours = by_ours(images, name, table=table, severity=severity)
    theirs = by_reference(images, name, table=table, severity=reference_severity or severity)
    return statistics(ours, images), statistics(theirs, images)


@pytest.mark.parametrize("severity", ALL_SEVERITIES)
@pytest.mark.parametrize("name", DRAWN)
def test_a_random_corruption_changes_images_as_the_definition_does_at_32_pixels(name, severity):
    assert compare(*samples(name, "cifar", severity=severity)).worst < 1


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize(("name", "table"), named_tables("tinyimagenet", "imagenet"))
def test_a_random_corruption_changes_images_as_the_definition_does_at_larger_sizes(name, table, severity):
    assert compare(*samples(name, table, severity=severity)).worst < 1


# Weights beyond 4 σ are negligible, so a radius of 6 and one of 8 give the same blur at σ = 2.
EQUAL_CONSTANTS = {("motion_blur", 3)}


@pytest.mark.parametrize("severity", [1, 2, 3, 4])
@pytest.mark.parametrize("name", DRAWN)
def test_the_comparison_rejects_the_constants_of_the_next_severity(name, severity):
    apart = compare(*samples(name, "cifar", severity=severity, reference_severity=severity + 1)).worst
    assert (apart < 1) if (name, severity) in EQUAL_CONSTANTS else (apart > 1)


@pytest.mark.parametrize("severity", ALL_SEVERITIES)
@pytest.mark.parametrize("name", ["impulse_noise", "snow", "frost", "fog", "spatter"])
def test_the_change_varies_between_images_as_that_of_the_definition(name, severity):
    """Compare per-image means, which are independent draws on equal grey images, by Kolmogorov-Smirnov."""
    clean = greys(300, size=32)
    ours, theirs = (
        by(clean, name, table="cifar", severity=severity).astype(float).mean(axis=(1, 2))
        for by in (by_ours, by_reference)
    )
    for channel in range(3):
        # A false alarm has probability 10⁻⁵ each, 1 in 1,300 for all, if the draws ever change.
        assert ks_2samp(ours[:, channel], theirs[:, channel]).pvalue > 1e-5


# Severity


FALLS = {
    ("glass_blur", "cifar"): (2, 4),
    ("spatter", "cifar"): (3,),
    ("frost", "cifar"): (3,),
    ("saturate", "cifar"): (2,),
    ("elastic_transform", "cifar"): (1, 2, 3, 4),
    ("glass_blur", "tinyimagenet"): (1, 3),
    ("elastic_transform", "tinyimagenet"): (1, 3),
    ("glass_blur", "imagenet"): (1, 3),
    ("elastic_transform", "imagenet"): (2,),
}
LEVEL = {
    ("glass_blur", "cifar"): (1,),
    ("motion_blur", "cifar"): (3,),
    ("frost", "cifar"): (4,),
    ("frost", "tinyimagenet"): (1, 2, 3, 4),
    ("spatter", "tinyimagenet"): (3,),
    ("saturate", "tinyimagenet"): (2,),
    ("elastic_transform", "tinyimagenet"): (2, 4),
    ("frost", "imagenet"): (1, 2, 3, 4),
    ("fog", "imagenet"): (3, 4),
    ("snow", "imagenet"): (2,),
    ("saturate", "imagenet"): (2,),
}


@functools.cache
def photographs(table):
    """Photographs of the shipped sample, enlarged to the table's size."""
    images = load_dataset("cifar10_sample", "train").images_NHWC
    size, count = SIZES[table], {"cifar": 400, "tinyimagenet": 120, "imagenet": 60}[table]
    return np.stack(
        [cv2.resize(np.asarray(images[i]), (size, size), interpolation=cv2.INTER_CUBIC) for i in range(count)]
    )


def sizes_of_change(by, images, name, *, table, severity):
    """Mean absolute change of each image, in grey levels [B]."""
    changed = by(images, name, table=table, severity=severity)
    return np.abs(changed.astype(np.float64) - images).mean(axis=(1, 2, 3))


def rise(by, name, *, table, severity, count=None):
    """The mean rise of the change from `severity` to the next, divided by its standard error."""
    images = photographs(table)[:count]
    lower, higher = (
        sizes_of_change(by, images, name, table=table, severity=s) for s in (severity, severity + 1)
    )
    growth = higher - lower
    return growth.mean() / (growth.std(ddof=1) / np.sqrt(len(growth)))


@pytest.mark.parametrize("table", SIZES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_changes_images_more_except_for_some_published_constants(name, table):
    falls, level = FALLS.get((name, table), ()), LEVEL.get((name, table), ())
    for severity in (1, 2, 3, 4):
        rises = rise(by_ours, name, table=table, severity=severity)
        if severity in falls:
            assert rises < -1, severity
        elif severity in level:
            assert abs(rises) < 5, severity
        else:
            assert rises > 0, severity


@pytest.mark.parametrize(
    ("name", "table", "severity"),
    [
        pytest.param(name, table, severity, marks=[pytest.mark.slow] if name == "glass_blur" else [])
        for (name, table), steps in FALLS.items()
        for severity in steps
    ],
)
def test_the_reference_has_the_same_falls_from_a_severity_to_the_next(name, table, severity):
    count = {"cifar": 150, "tinyimagenet": 40, "imagenet": 15}[table] if name == "glass_blur" else None
    assert rise(by_reference, name, table=table, severity=severity, count=count) < -1

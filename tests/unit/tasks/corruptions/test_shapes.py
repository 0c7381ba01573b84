"""Check that images of a wrong shape, layout or type are refused with the batch to give instead."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from tasks.corruptions import corrupt
from tasks.errors import DataError

OPTIONS = {"image_ids_B": [0], "corruption": "fog", "severity": 3, "seed": 0}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "batch"),
    [
        ((224, 224, 3), "[1, 224, 224, 3]: images[None]"),
        ((32, 40, 1), "[1, 32, 40, 1]: images[None]"),
        ((32, 40), "[1, 32, 40]: images[None]"),
        ((2, 3, 32, 40), "[2, 32, 40, 3]: numpy.moveaxis(images, 1, -1)"),
        ((2, 1, 32, 40), "[2, 32, 40, 1]: numpy.moveaxis(images, 1, -1)"),
        ((2, 32, 40, 4), "[2, 32, 40, 3]: images[..., :3]"),
        ((3, 32, 40), "[1, 32, 40, 3]: numpy.moveaxis(images, 0, -1)[None]"),
    ],
)
def test_another_layout_is_refused_with_the_batch_to_give(shape: tuple[int, ...], batch: str) -> None:
    images = noise(*shape)
    with pytest.raises(DataError, match=re.escape(f"give a batch {batch}")):
        corrupt(images, **OPTIONS)


def test_the_batch_that_an_error_suggests_is_accepted() -> None:
    image = noise(32, 40, 3)
    expected = corrupt(image[None], **OPTIONS)
    channels_first = image.transpose(2, 0, 1)
    for batch in (np.moveaxis(channels_first[None], 1, -1), np.moveaxis(channels_first, 0, -1)[None]):
        np.testing.assert_array_equal(corrupt(batch, **OPTIONS), expected)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([noise(32, 32, 3)], r"images are list; .*numpy\.stack\(images\) makes one"),
        (
            torch.from_numpy(noise(1, 32, 32, 3)),
            r"images are Tensor; .*images\.numpy\(force=True\) makes one",
        ),
        (
            np.zeros((1, 32, 32, 3), np.int64),
            r"images are int64; .*Convert from 0\.\.255 with images\.astype\(numpy\.uint8\)",
        ),
        (np.zeros((1, 32, 32, 3)), r"images are float64; .*Convert from 0\.\.1 with \(255 \* images\)"),
        (np.zeros((1, 32, 32, 3), bool), r"images are bool; .*0\.\.255$"),
        (noise(1, 4, 32, 3), r"images are 4x32 in a batch \[1, 4, 32, 3\]; at least 8x8"),
    ],
)
def test_images_that_are_not_uint8_are_refused_with_the_conversion(images: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        corrupt(images, **OPTIONS)  # type: ignore[arg-type]  # what an untyped caller may pass


@pytest.mark.parametrize("size", [4, 32])
def test_an_empty_batch_stays_empty(size: int) -> None:
    options = OPTIONS | {"image_ids_B": []}
    assert corrupt(noise(0, size, size, 3), **options).shape == (0, size, size, 3)

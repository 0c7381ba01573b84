"""Check images given in Python: PIL images are converted as files are, arrays and tensors have one meaning."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metarepair.data.given_images import GivenImages, collect_images
from tasks.datasets.images import decode_image
from tasks.errors import DataError

RAMP = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)
GREY = RAMP[..., 0]


def collected(*images: Any, channels: int = 3) -> np.ndarray:
    return collect_images([(image, 0) for image in images], name="failures", channels=channels).images_NHWC


def in_mode(mode: str) -> Image.Image:
    image = Image.fromarray(RAMP)
    return image.convert({"PA": "P", "La": "LA"}.get(mode, mode)).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_a_pil_image_of_any_mode_is_converted_as_its_file_would_be(mode: str) -> None:
    image = in_mode(mode)
    found = collected(image)[0]
    assert found.shape == (12, 16, 3)
    if mode in ("1", "L", "LA", "P", "RGB", "RGBA"):  # modes that PNG can store
        stream = io.BytesIO()
        image.save(stream, "PNG")
        np.testing.assert_array_equal(found, decode_image(stream.getvalue()))
    if mode in ("CMYK", "RGB", "RGBA"):
        np.testing.assert_array_equal(found, RAMP)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_16_bit_grey_spans_its_whole_range(kind: str, channels: int) -> None:
    values = np.array([[0, 128, 129, 300, 20000, 40000, 65407, 65535]], np.uint16)
    found = collected(Image.fromarray(values.astype(kind)), channels=channels)
    assert found.shape == (1, 1, 8, channels)
    for channel in range(channels):
        assert found[0, 0, :, channel].tolist() == [0, 0, 1, 1, 78, 156, 255, 255]


def test_grey_stays_grey_for_one_channel_and_is_rgb_for_three() -> None:
    grey, colour = Image.fromarray(GREY), Image.fromarray(RAMP)
    for one in (grey, grey.convert("LA"), grey.convert("RGB"), grey.convert("P")):
        np.testing.assert_array_equal(collected(one, channels=1), GREY[None, ..., None])
    np.testing.assert_array_equal(collected(grey), np.repeat(GREY[None, ..., None], 3, axis=3))
    np.testing.assert_array_equal(collected(grey, colour), [np.repeat(GREY[..., None], 3, axis=2), RAMP])
    with pytest.raises(DataError, match=r"item 1 is a colour image \(mode RGB\).*one channel"):
        collected(grey, colour, channels=1)


def test_an_orientation_is_applied_as_in_a_data_set(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(collected(image)[0], np.rot90(RAMP, -1))
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png"), np.rot90(RAMP, -1))


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (Image.fromarray(GREY.astype(np.float32)), "item 1 cannot be used: its pixels are floating-point"),
        (Image.fromarray(GREY.astype(np.int32) * 1_000_000), "item 1 cannot be used: its pixels are 32-bit"),
        (GREY.astype(np.uint16), "item 1: images are uint16"),
        (torch.zeros(3, 12, 16, dtype=torch.complex64), "item 1: images are complex64"),
        (torch.zeros(3, 12, 16).to_sparse(), "item 1: a tensor of .*sparse.* cannot be read"),
        (torch.zeros(3, 12, 16, device="meta"), "item 1: a tensor of .* on meta cannot be read"),
        (torch.zeros(3, 12, 16), "item 1 is float32 and item 0 is uint8"),
        (
            RAMP[:6],
            r"different sizes \(item 0 is 12×16 with 3 channels, item 1 is 6×16 with 3 channels\)",
        ),
        (GREY, "item 1 is 12×16 with 1 channel\\)"),
    ],
)
def test_an_unusable_image_is_refused_with_its_number(image: Any, says: str) -> None:
    with pytest.raises(DataError, match=f"^failures: .*{says}" if "sizes" in says else says):
        collected(RAMP, image)


def test_a_truncated_file_is_refused_with_its_number(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(stream, "PNG")
    (tmp_path / "a.png").write_bytes(stream.getvalue()[:3000])
    with (
        Image.open(tmp_path / "a.png") as image,
        pytest.raises(DataError, match="item 0 cannot be used: truncated"),
    ):
        collected(image)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("pairs", [False, True])
def test_floats_of_every_width_become_prepared_float32_input(kind: torch.dtype, pairs: bool) -> None:
    images = torch.linspace(-2, 2, 3 * 3 * 4 * 4).view(3, 3, 4, 4).to(kind).requires_grad_()
    labels = torch.tensor([0, 1, 2])
    found = collect_images(
        list(zip(images, labels, strict=True)) if pairs else (images, labels), name="failures"
    )
    assert found.prepared
    assert found.images_NHWC.dtype == np.float32
    np.testing.assert_array_equal(found.images_NHWC, images.detach().float().permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_float_that_is_not_finite_is_refused_with_the_number_of_its_image(bad: float) -> None:
    images = np.zeros((4, 3, 2, 2), np.float32)
    images[2, 1, 0, 0] = bad
    with pytest.raises(DataError, match="image 2 has NaN or infinity"):
        collect_images((images, np.zeros(4, int)), name="failures")


def test_a_mapping_is_refused_as_a_sequence_of_pairs() -> None:
    with pytest.raises(DataError, match="failures: dict is neither"):
        collect_images({"images": RAMP, "labels": 0}, name="failures")


@given(count=st.integers(1, 70), grey=st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_number_of_images_is_read_the_same_from_every_container(count: int, grey: bool) -> None:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 3, 4, 1 if grey else 3)).astype(np.uint8)
    labels = rng.integers(0, 5, count)
    plain = [image[..., 0] if grey else image for image in images]
    doors: list[Any] = [
        (images, labels),
        (torch.from_numpy(images), labels.tolist()),
        list(zip(images, labels, strict=True)),
        [(Image.fromarray(image), torch.tensor(label)) for image, label in zip(plain, labels, strict=True)],
    ]
    for door in doors:
        found: GivenImages = collect_images(door, name="failures", channels=images.shape[3])
        assert len(found) == count
        np.testing.assert_array_equal(found.images_NHWC, images)
        np.testing.assert_array_equal(found.labels_N, labels)
        np.testing.assert_array_equal(found.image_ids_N, np.arange(count))

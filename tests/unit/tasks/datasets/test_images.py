"""Check that common image files are decoded to RGB of one size and that other files are refused."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as published

from tasks.datasets.images import UnreadableImageError, decode_image, fit, opened_pixels
from watchdog import watched

RAMP = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)
GREY = RAMP[..., 0]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def as_three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def test_rgb_is_decoded_unchanged_from_bytes_and_from_a_file(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(RAMP))
    (tmp_path / "a.png").write_bytes(content)
    for given_as in (content, tmp_path / "a.png"):
        image = decode_image(given_as)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, RAMP)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GREY), as_three(GREY)),
        (Image.fromarray(GREY > 100), as_three(np.where(GREY > 100, 255, 0))),
        (Image.fromarray(GREY.astype(np.uint16) * 257), as_three(GREY)),
        (Image.fromarray(np.dstack([RAMP, GREY])), RAMP),
        (Image.fromarray(np.dstack([GREY, GREY])), as_three(GREY)),
    ],
    ids=["grey", "one bit", "16 bit", "transparent", "transparent grey"],
)
def test_other_kinds_are_converted(image: Image.Image, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(decode_image(encoded(image)), expected)


def test_16_bits_are_scaled_over_the_whole_range_and_rounded_to_nearest() -> None:
    values = np.array([[0, 128, 129, 32768, 65406, 65407, 65535]], np.uint16)
    found = decode_image(encoded(Image.fromarray(values)))
    assert found[0, :, 0].tolist() == [0, 0, 1, 128, 254, 255, 255]


def test_a_palette_with_transparency_keeps_its_colours() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    found = decode_image(encoded(image, transparency=bytes([255, 0, 128])))
    assert found[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_cmyk_is_converted_near_its_colours() -> None:
    blocks = np.zeros((16, 48, 3), np.uint8)
    blocks[:, :16, 0], blocks[:, 16:32, 1], blocks[:, 32:] = 255, 255, 200
    content = encoded(Image.fromarray(blocks).convert("CMYK"), "JPEG", quality=100)
    found = decode_image(content).astype(int)
    assert found.shape == blocks.shape
    assert np.abs(found - blocks).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    turned = {
        1: RAMP,
        2: RAMP[:, ::-1],
        3: RAMP[::-1, ::-1],
        4: RAMP[::-1],
        5: RAMP.transpose(1, 0, 2),
        6: np.rot90(RAMP, -1),
        7: RAMP.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(RAMP),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(
        decode_image(encoded(Image.fromarray(RAMP), exif=exif)), turned[orientation]
    )


def test_an_image_with_damaged_exif_is_still_decoded() -> None:
    content = encoded(Image.fromarray(RAMP), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12")
    np.testing.assert_array_equal(decode_image(content), RAMP)


def test_the_first_frame_of_an_animation_is_decoded() -> None:
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.unique(decode_image(content)).tolist() == [10]


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY.astype(np.float32)),
        Image.fromarray(GREY.astype(np.int32) * 1_000_000),
        Image.fromarray(-GREY.astype(np.int32)),
    ],
)
def test_pixels_without_a_known_range_are_refused(image: Image.Image) -> None:
    with pytest.raises(UnreadableImageError, match="8 or 16 bits"):
        decode_image(encoded(image, "TIFF"))


def test_a_picture_of_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.fromarray(RAMP))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90)
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        decode_image(content)


@pytest.mark.parametrize("content", [b"", b"not an image", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_a_file_that_is_not_an_image_is_refused(content: bytes) -> None:
    with pytest.raises(UnreadableImageError, match="not an image"):
        decode_image(content)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="no such file"):
        decode_image(tmp_path / "gone.png")


NOISE = np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)
KINDS = {
    kind: encoded(Image.fromarray(NOISE), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_image_is_refused(kind: str, share: float) -> None:
    content = KINDS[kind]
    with pytest.raises(UnreadableImageError, match="not an image"):
        decode_image(content[: int(len(content) * share)])


@pytest.mark.filterwarnings("ignore")  # Pillow warns of strange tags
@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    flips=st.lists(st.tuples(st.integers(0), st.integers(1, 255)), max_size=6),
)
def test_damaged_bytes_give_pixels_or_an_unreadable_image_error(
    kind: str, flips: list[tuple[int, int]]
) -> None:
    content = bytearray(KINDS[kind])
    for place, value in flips:
        content[place % min(len(content), 400)] ^= value  # decoders mostly fail on headers
    try:
        image = decode_image(bytes(content), 8)
    except UnreadableImageError:
        return
    assert image.shape == (8, 8, 3)
    assert image.dtype == np.uint8


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 64))
def test_fitting_equals_resize_and_centre_crop_of_torchvision(width: int, height: int, size: int) -> None:
    pixels = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = published.center_crop(published.resize(image, [size], antialias=True), [size])
    np.testing.assert_array_equal(np.asarray(fit(image, size)), np.asarray(expected))


def test_an_image_of_the_right_size_is_returned_unchanged() -> None:
    image = Image.fromarray(NOISE)
    assert fit(image, 24) is image
    assert fit(image, None) is image


def test_a_pipe_in_place_of_a_picture_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with watched(), pytest.raises(UnreadableImageError, match="a pipe, a socket or a device"):
        decode_image(tmp_path / "a.png")


def test_a_picture_that_is_a_program_is_not_run() -> None:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "EPS")
    with pytest.raises(UnreadableImageError, match="not an image"):
        decode_image(content.getvalue())


def test_an_image_of_more_pixels_than_fit_the_memory_is_refused_by_its_header() -> None:
    content = io.BytesIO()
    Image.new("1", (9460, 9460)).save(content, "PNG")
    with warnings.catch_warnings(), watched() as use:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(UnreadableImageError, match="it has 9460 x 9460 pixels, more than 89,478,485"):
            decode_image(content.getvalue())
        with pytest.raises(UnreadableImageError, match="make it smaller"):
            opened_pixels(Image.open(content))
    assert use.grown_bytes < 1 << 26

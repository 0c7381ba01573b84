"""Decode and convert images to uint8 pixels [H, W, 3] of a given size.

All images are read here, whether they come from a file, a table, or Python as a PIL image. Grey, palette, CMYK, YCbCr
and one-bit images are converted to RGB, and 16-bit grey to 8 bits over its whole range. Transparency is dropped, as in
torchvision's loader; an EXIF orientation is applied; of an animation the first frame is used. An image that cannot be
decoded raises UnreadableImageError, whatever error the decoder raises.
"""

from __future__ import annotations

import io
import threading
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tasks.records import Pixels
from tasks.storage.paths import require_regular

_U16_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_EIGHT_BITS = ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)  # of a 16-bit value
MOST_PIXELS = 89_478_485  # Pillow's first limit, at which it only warns; decoding then takes up to 1.5 GB
_LARGE_PIXELS = (
    1 << 24
)  # images of more are decoded one at a time, so that threads do not add up their memory
_RUN_PROGRAMS = ("EPS",)
_large = threading.Lock()


class UnreadableImageError(Exception):
    """The bytes are not a whole image, or its values have no 8-bit meaning. The message is a phrase."""


def decode_image(content: bytes | Path, image_size: int | None = None) -> Pixels:
    """Decode an image from bytes or a file to pixels [H, W, 3].

    If `image_size` is given, the image is resized and cropped to a square of that side. Raises UnreadableImageError.
    """
    try:
        source = io.BytesIO(content) if isinstance(content, bytes) else require_regular(content)
        with Image.open(source, formats=safe_formats()) as image:
            _check_size(image)
            with _large if image.width * image.height > _LARGE_PIXELS else nullcontext():
                image.load()
                return np.array(fit(to_rgb(_upright(image)), image_size))
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError("no such file") from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image") from error
    except Exception as error:
        raise _undecodable(error) from error


@cache
def safe_formats() -> tuple[str, ...]:
    """The formats that Pillow decodes itself: for EPS it would run Ghostscript, a program that the image controls."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _RUN_PROGRAMS)


def _check_size(image: Image.Image) -> None:
    """Refuse an image that would take too much memory; its header tells its size before any pixel is decoded."""
    if image.width * image.height > MOST_PIXELS:
        raise UnreadableImageError(
            f"it has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}; make it smaller"
        )


def opened_pixels(image: Image.Image) -> Pixels:
    """Pixels [H, W, 3] of an image that Pillow has opened or made, converted like those of a file.

    Raises UnreadableImageError.
    """
    _check_size(image)
    try:
        image.load()  # reads an opened file
    except Exception as error:
        raise _undecodable(error) from error
    return np.array(to_rgb(_upright(image)))


def _undecodable(error: Exception) -> UnreadableImageError:
    """Wrap an error of Pillow. On damaged bytes it raises OSError, SyntaxError, struct.error, IndexError and others."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UnreadableImageError(f"truncated or not an image: {reason}")


def _upright(image: Image.Image) -> Image.Image:
    """Rotate the image as its EXIF orientation says. Damaged EXIF data is ignored, since the pixels are whole."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image.copy()


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB. Raises UnreadableImageError for values without a known range."""
    if image.mode in _U16_MODES or image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImageError("its pixels are 32-bit numbers; save it with 8 or 16 bits")
        return Image.fromarray(_EIGHT_BITS[values]).convert("RGB")
    if image.mode == "F":
        raise UnreadableImageError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # otherwise Pillow warns about transparent palettes
    if image.mode == "La":
        image = image.convert("LA")  # Pillow cannot convert La to RGB directly
    return image.convert("RGB")


def fit(image: Image.Image, image_size: int | None) -> Image.Image:
    """Resize the shorter side to `image_size` (bilinear, antialiased) and crop the centre; `None` changes nothing.

    The sizes and offsets are those of torchvision's Resize(image_size) and CenterCrop(image_size). Of an image that is
    very long only the part that is kept is resized: 65,500 x 1 pixels would become 3 billion for a size of 224.
    """
    if image_size is None or image.size == (image_size, image_size):
        return image
    width, height = image.size
    shorter = min(width, height)
    size = (int(image_size * width / shorter), int(image_size * height / shorter))
    left, top = round((size[0] - image_size) / 2), round((size[1] - image_size) / 2)
    box = (left, top, left + image_size, top + image_size)
    if size[0] * size[1] > MOST_PIXELS:
        x, y = width / size[0], height / size[1]
        kept = (box[0] * x, box[1] * y, min(box[2] * x, width), min(box[3] * y, height))
        return image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=kept)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return image.crop(box)

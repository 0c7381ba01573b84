"""Decodes and converts images to uint8 pixels [H, W, 3], of the size that is asked for.

Every image passes here, whether it comes from a file, from a table, or from Python as a PIL image. What comes is
converted: grey, palette, CMYK, YCbCr and one-bit images to RGB; 16-bit grey to 8 bits by its whole range; transparency
is dropped, as torchvision's loader does; an EXIF orientation is applied; of an animation the first frame counts. What
cannot be decoded is an UnreadableImageError, whatever it is that the decoder trips over.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tasks.records import Pixels

_U16_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


class UnreadableImageError(Exception):
    """Bytes that are no whole image, or one with no 8-bit meaning. The message is a phrase."""


def decode_image(content: bytes | Path, image_size: int | None = None) -> Pixels:
    """Pixels of the image in these bytes, or in this file; resized and cropped to a square of `image_size` if given.

    Raises UnreadableImageError.
    """
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            image.load()
            upright = _upright(image)
    except FileNotFoundError as error:
        raise UnreadableImageError("no such file") from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image") from error
    except Exception as error:
        raise _undecodable(error) from error
    return np.array(fit(to_rgb(upright), image_size))


def opened_pixels(image: Image.Image) -> Pixels:
    """Pixels [H, W, 3] of an image that Pillow has opened or made, converted as those of a file are.

    Raises UnreadableImageError.
    """
    try:
        image.load()  # an opened file is read here
    except Exception as error:
        raise _undecodable(error) from error
    return np.array(to_rgb(_upright(image)))


def _undecodable(error: Exception) -> UnreadableImageError:
    """Pillow's decoders raise whatever damaged bytes lead them to: OSError, SyntaxError, struct.error, IndexError, …"""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UnreadableImageError(f"truncated or not an image: {reason}")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says. Damaged EXIF says nothing: the pixels are whole."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image.copy()


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, 8 bits. Raises UnreadableImageError for numbers without a known range."""
    if image.mode in _U16_MODES or image.mode == "I":
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImageError("its pixels are 32-bit numbers; save it with 8 or 16 bits")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnreadableImageError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # Pillow warns of a transparent palette otherwise
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct way to RGB
    return image.convert("RGB")


def fit(image: Image.Image, image_size: int | None) -> Image.Image:
    """Shorter side to `image_size` (bilinear, antialiased), then the centre square; as it is for None.

    The sizes and offsets are torchvision's: Resize(image_size), then CenterCrop(image_size).
    """
    if image_size is None or image.size == (image_size, image_size):
        return image
    width, height = image.size
    shorter = min(width, height)
    size = (int(image_size * width / shorter), int(image_size * height / shorter))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - image_size) / 2), round((size[1] - image_size) / 2)
    return image.crop((left, top, left + image_size, top + image_size))

"""Pixels in, pixels out as digital processing spoils them: elastic, pixelate, JPEG.

Source: definitions of Hendrycks & Dietterich, ICLR 2019, Appendix A, and of their published generator
(github.com/hendrycks/robustness).
"""

# B images in a batch, H W C pixels, 3 points of 2 coordinates (x, y)

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.corruptions.blur import smooth
from tasks.corruptions.severity import Dose, Levels
from tasks.records import Ints, Pixels

Fold = Callable[[Ints, int], Ints]


def pixelate(images_BHWC: Pixels, dose: Dose) -> Pixels:
    """Box filter down to int(size · c), box filter up again."""
    (scale,) = dose.constants
    height, width = images_BHWC.shape[1:3]
    small = int(width * scale), int(height * scale)
    coarse_BHWC = np.empty_like(images_BHWC)
    for i, image_HWC in enumerate(images_BHWC):
        shrunk = Image.fromarray(image_HWC).resize(small, Image.Resampling.BOX)
        coarse_BHWC[i] = np.asarray(shrunk.resize((width, height), Image.Resampling.BOX))
    return coarse_BHWC


def jpeg_compression(images_BHWC: Pixels, dose: Dose) -> Pixels:
    """Through JPEG at quality c; Pillow's encoder is the reference."""
    (quality,) = dose.constants
    decoded_BHWC = np.empty_like(images_BHWC)
    for i, image_HWC in enumerate(images_BHWC):
        buffer = io.BytesIO()
        Image.fromarray(image_HWC).save(buffer, "JPEG", quality=int(quality))
        with Image.open(buffer) as decoded:
            decoded_BHWC[i] = np.asarray(decoded)
    return decoded_BHWC


def elastic_transform(images_BHWC: Pixels, dose: Dose) -> Levels:
    """A random affine map, then a smooth random displacement of every pixel.

    The published constants are fractions of the image's size, so they grow with images that are not of
    the table's size.
    """
    batch, height, width = images_BHWC.shape[:3]
    growth = min(height, width) / dose.native_size
    amplitude, sigma, jitter = (growth * c for c in dose.constants)
    jitter_B32: NDArray[np.float64] = np.empty((batch, 3, 2))
    shifts_B2HW: Levels = np.empty((batch, 2, height, width), np.float32)
    for i, rng in enumerate(dose.rngs):
        jitter_B32[i] = rng.uniform(-jitter, jitter, size=(3, 2))
        if amplitude:
            shifts_B2HW[i] = rng.random(size=(2, height, width), dtype=np.float32) * 2 - 1
    rows_BHW, columns_BHW = affine_positions(jitter_B32, height, width)
    images = sample_bilinear(images_BHWC.astype(np.float32), rows_BHW, columns_BHW, fold=fold_at_centre)
    if not amplitude:
        return images
    shifts = smooth(shifts_B2HW.reshape(-1, height, width), sigma, mode="reflect", truncate=3.0)
    shifts_B2HW = (shifts * np.float32(amplitude)).reshape(batch, 2, height, width)
    rows_BHW = np.arange(height, dtype=np.float32)[:, None] + shifts_B2HW[:, 1]
    columns_BHW = np.arange(width, dtype=np.float32) + shifts_B2HW[:, 0]
    return sample_bilinear(images, rows_BHW, columns_BHW, fold=fold_at_edge)


def affine_positions(jitter_B32: NDArray[np.float64], height: int, width: int) -> tuple[Levels, Levels]:
    """Rows and columns [B, H, W] to read from, for the affine map that moves three points by `jitter`."""
    centre, side = np.array([width // 2, height // 2], float), min(height, width) // 3
    points_32 = centre + side * np.array([[1, 1], [1, -1], [-1, -1]], float)
    moved_B32 = points_32 + jitter_B32
    # The inverse map: two edges of the moved triangle go back to those of the original. Written out, as
    # a library's batched solver may round otherwise for another batch.
    (ax, ay), (bx, by) = points_32[1] - points_32[0], points_32[2] - points_32[0]
    ux, uy = (moved_B32[:, 1] - moved_B32[:, 0]).T[:, :, None, None]
    vx, vy = (moved_B32[:, 2] - moved_B32[:, 0]).T[:, :, None, None]
    area = ux * vy - uy * vx
    area = np.where(np.abs(area) < 1e-6, 1e-6, area)
    origin_x, origin_y = moved_B32[:, 0].T[:, :, None, None]
    x = np.arange(width) - origin_x
    y = np.arange(height)[:, None] - origin_y
    along_u = (x * vy - y * vx) / area
    along_v = (y * ux - x * uy) / area
    rows = points_32[0, 1] + along_u * ay + along_v * by
    columns = points_32[0, 0] + along_u * ax + along_v * bx
    return rows.astype(np.float32), columns.astype(np.float32)


def sample_bilinear(images_BHWC: Levels, rows_BHW: Levels, columns_BHW: Levels, *, fold: Fold) -> Levels:
    """Read the images at fractional positions; `fold` brings indices outside back inside."""
    batch, height, width, channels = images_BHWC.shape
    flat = images_BHWC.reshape(-1, channels)
    first_B11 = (np.arange(batch) * (height * width))[:, None, None]
    top, left = np.floor(rows_BHW), np.floor(columns_BHW)
    down, right = (rows_BHW - top)[..., None], (columns_BHW - left)[..., None]
    row, column = top.astype(np.int64), left.astype(np.int64)
    upper = first_B11 + fold(row, height) * width
    lower = first_B11 + fold(row + 1, height) * width
    near, far = fold(column, width), fold(column + 1, width)
    above = _mix(flat.take(upper + near, axis=0), flat.take(upper + far, axis=0), right)
    below = _mix(flat.take(lower + near, axis=0), flat.take(lower + far, axis=0), right)
    return _mix(above, below, down)


def _mix(first: Levels, second: Levels, share: Levels) -> Levels:
    return first + (second - first) * share


def fold_at_centre(index: Ints, size: int) -> Ints:
    """Mirror about the centres of the outermost pixels: … 2 1 | 0 1 2 …"""
    index = index % (2 * size - 2)
    return np.minimum(index, 2 * size - 2 - index)


def fold_at_edge(index: Ints, size: int) -> Ints:
    """Mirror about the outer edges of the outermost pixels: … 1 0 | 0 1 2 …"""
    index = index % (2 * size)
    return np.minimum(index, 2 * size - 1 - index)

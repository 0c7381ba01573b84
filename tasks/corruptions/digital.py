"""The digital corruptions: elastic transform, pixelate and JPEG compression.

Source: definitions of Hendrycks & Dietterich, ICLR 2019, Appendix A, and of their published generator
(github.com/hendrycks/robustness).
"""

# B images in a batch, H W C pixels, 3 points of 2 coordinates (x, y)

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.corruptions.blur import WHOLE_PIXELS, gaussian_taps, smooth
from tasks.corruptions.draws import uniforms
from tasks.corruptions.severity import Dose, Levels
from tasks.errors import DataError
from tasks.records import Ints, Pixels

BOX_BITS = 22
CELLS_PER_SIGMA = 64
# Longest sides in pixels: OpenCV resamples with 16-bit positions; libjpeg's own limit.
LONGEST_BENT, LONGEST_JPEG = 2**15 - 2, 65_500
NO_SECOND_MAP: Any = None  # the first map has x and y; the type stubs do not allow None


def pixelate(images_BHWC: Pixels, dose: Dose) -> Pixels:
    """Shrink to int(size · c) and enlarge again with box filters; equal to Pillow to the byte, for a whole batch."""
    (scale,) = dose.constants
    batch, height, width, channels = images_BHWC.shape
    across, down = (box_taps(size, int(size * scale)) for size in (width, height))
    # Channels lie side by side in a row: entry i of a row is channel i % C of pixel i // C.
    places_T = across.places * channels
    columns = (places_T[:, :, None] + np.arange(channels)).reshape(len(places_T), -1)
    rows_BHX = images_BHWC.reshape(batch, height, -1)
    shrunk = _weighted([rows_BHX.take(c, axis=2) for c in columns], across.weights.repeat(channels, axis=1))
    shrunk = _weighted([shrunk.take(r, axis=1) for r in down.places], down.weights[:, :, None])
    grown = shrunk.take(down.nearest, axis=1)
    entries = (across.nearest[:, None] * channels + np.arange(channels)).ravel()
    coarse_BHWC: Pixels = grown.take(entries, axis=2).reshape(images_BHWC.shape)
    return coarse_BHWC


@dataclass(frozen=True)
class BoxTaps:
    """Shrinking an axis to S: output s is the sum over taps t of weights[t, s] · input[places[t, s]], divided by 2²².

    nearest: for enlarging again, the position among S from which each input position gets its value.
    """

    places: Ints
    weights: NDArray[np.int32]
    nearest: Ints


@functools.lru_cache(maxsize=32)
def box_taps(size: int, small: int) -> BoxTaps:
    """Pillow's box filter: integer weights in units of 2⁻²²; an input counts if its centre is covered."""
    ratio = size / small
    centres = (np.arange(small) + 0.5) * ratio
    first = np.floor(centres - ratio / 2 + 0.5).astype(np.int64)
    places = first + np.arange(math.ceil(ratio) + 1)[:, None]
    distance = (places - centres + 0.5) / ratio
    covered = (distance > -0.5) & (distance <= 0.5) & (places < size)
    covered &= places < np.floor(centres + ratio / 2 + 0.5)
    used = covered.any(axis=1)
    weights = np.floor(covered / covered.sum(axis=0) * 2**BOX_BITS + 0.5).astype(np.int32)
    nearest = np.floor((np.arange(size) + 0.5) / ratio).astype(np.int64)
    return BoxTaps(np.minimum(places, size - 1)[used], weights[used], nearest)


def _weighted(taps: list[Pixels], weights: NDArray[np.int32]) -> Pixels:
    """The weighted sum of the taps, rounded to whole grey levels."""
    if len(taps) == 1:
        return taps[0]
    total = np.full(taps[0].shape, 1 << (BOX_BITS - 1), np.int32)
    for tap, weight in zip(taps, weights, strict=True):
        total += tap * weight
    total >>= BOX_BITS
    return total.astype(np.uint8)


def jpeg_compression(images_BHWC: Pixels, dose: Dose) -> Pixels:
    """Encode as JPEG at quality c and decode. OpenCV uses Pillow's encoder (libjpeg-turbo), with less overhead."""
    (quality,) = dose.constants
    check_sides(*images_BHWC.shape[1:3], corruption="jpeg_compression", longest=LONGEST_JPEG)
    options = [cv2.IMWRITE_JPEG_QUALITY, int(quality)]
    grey = images_BHWC.shape[3] == 1
    decoded_BHWC = np.empty_like(images_BHWC)
    for image_HWC, into in zip(images_BHWC, decoded_BHWC, strict=True):
        _, encoded = cv2.imencode(".jpg", image_HWC if grey else image_HWC[..., ::-1], options)
        decoded = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB)
        into[:] = np.asarray(decoded).reshape(into.shape)
    return decoded_BHWC


def check_sides(height: int, width: int, *, corruption: str, longest: int) -> None:
    """Raise DataError if a side is longer than the underlying libraries support."""
    if max(height, width) > longest:
        raise DataError(
            f"images are {height}x{width}; {corruption} takes sides of up to {longest:,} pixels. Crop or shrink them"
        )


def elastic_transform(images_BHWC: Pixels, dose: Dose) -> Levels:
    """Apply a random affine map, then a smooth random displacement of every pixel.

    The published constants are fractions of the image's size, so they are scaled for images of another size
    than the table's.
    """
    batch, height, width = images_BHWC.shape[:3]
    check_sides(height, width, corruption="elastic_transform", longest=LONGEST_BENT)
    growth = min(height, width) / dose.native_size
    amplitude, sigma, jitter = (growth * c for c in dose.constants)
    num_shifts = 2 * height * width if amplitude else 0
    drawn = uniforms((batch, 6 + num_shifts), dose) * 2 - 1
    points_32 = anchor_points(height, width)
    moved_B32 = points_32 + jitter * drawn[:, :6].reshape(batch, 3, 2)
    if amplitude:
        shifts_BHW2 = drawn[:, 6:].reshape(batch, height, width, 2)
        positions_BHW2 = smooth_shifts(shifts_BHW2, sigma)
        positions_BHW2 *= np.float32(amplitude)
        positions_BHW2 += np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=2)
    bent: Levels = np.empty(images_BHWC.shape, np.float32)
    for i, image_HWC in enumerate(images_BHWC.astype(np.float32)):
        # The map from a pixel's position to the position where its colour is read.
        inverse_23 = affine_map(moved_B32[i], points_32)
        turned = cv2.warpAffine(
            image_HWC,
            inverse_23,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        if amplitude:
            turned = cv2.remap(
                turned, positions_BHW2[i], NO_SECOND_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
            )
        bent[i] = turned.reshape(bent[i].shape)
    return bent


def smooth_shifts(shifts_BHW2: Levels, sigma: float) -> Levels:
    """Smooth with a Gaussian, cut at 3 σ and mirrored at the edge; large images are smoothed on a coarser grid.

    The grid's cells are σ/64 wide, so a smoothed value differs by at most about 2 % of the values' spread.
    """
    height, width = shifts_BHW2.shape[1:3]
    if not is_wide(height, width, sigma=sigma):
        return smooth(shifts_BHW2, sigma, mode="reflect", truncate=3.0)
    rows, columns = (round(size / (sigma / CELLS_PER_SIGMA)) for size in (height, width))
    down, across = (
        gaussian_taps(sigma * n / size, truncate=3.0) for n, size in ((rows, height), (columns, width))
    )
    smoothed: Levels = np.empty(shifts_BHW2.shape, np.float32)
    for shifts_HW2, into in zip(shifts_BHW2, smoothed, strict=True):
        coarse = cv2.resize(shifts_HW2, (columns, rows), interpolation=cv2.INTER_AREA)
        coarse = cv2.sepFilter2D(coarse, cv2.CV_32F, across, down, borderType=cv2.BORDER_REFLECT)
        into[:] = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return smoothed


def is_wide(height: int, width: int, *, sigma: float) -> bool:
    """Whether the Gaussian is so wide, and the image so large, that a coarser grid is used."""
    return height * width > WHOLE_PIXELS and sigma > CELLS_PER_SIGMA


def anchor_points(height: int, width: int) -> NDArray[np.float64]:
    """The three points (x, y) [3, 2] around the centre that the affine map moves."""
    centre, side = np.array([width // 2, height // 2], float), min(height, width) // 3
    return np.asarray(centre + side * np.array([[1, 1], [1, -1], [-1, -1]]), np.float64)


def affine_map(origin_32: NDArray[np.float64], image_32: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine map [2, 3] that maps three points (x, y) to three others.

    If the points lie on a line, which is unlikely with the published constants, an area of 10⁻⁶ pixels² is used.
    """
    ((ax, ay), (bx, by)), ((ux, uy), (vx, vy)) = (
        (points[1:] - points[0]).tolist() for points in (image_32, origin_32)
    )
    area = ux * vy - uy * vx
    area = area if abs(area) > 1e-6 else 1e-6
    by_x = (ax * vy - bx * uy) / area, (ay * vy - by * uy) / area
    by_y = (bx * ux - ax * vx) / area, (by * ux - ay * vx) / area
    (origin_x, origin_y), image = origin_32[0].tolist(), image_32[0].tolist()
    return np.array(
        [[p, q, c - p * origin_x - q * origin_y] for p, q, c in zip(by_x, by_y, image, strict=True)]
    )

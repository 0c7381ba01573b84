"""Pixels in, blurred grey levels out: Gaussian, defocus, glass, motion and zoom blur.

Source: definitions of Hendrycks & Dietterich, ICLR 2019, Appendix A, and of their published generator
(github.com/hendrycks/robustness); the streak of motion blur as ImageMagick defines it.
"""

# B images in a batch, H W C pixels, P = H·W pixel positions

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import gaussian_filter

from tasks.corruptions.severity import Dose, Levels
from tasks.records import Ints, Pixels

# Beyond the edge: the outermost pixel repeated, or the image mirrored.
Edge = Literal["nearest", "reflect"]
# Sparse types differ between releases of SciPy.
Sparse = Any


def smooth(layers: Levels, sigma: float, *, mode: Edge = "nearest", truncate: float = 4.0) -> Levels:
    """Gaussian smoothing of [B, H, W] or [B, H, W, C] over H and W only."""
    sigmas = (0.0, sigma, sigma, 0.0)[: layers.ndim]
    smoothed: Levels = np.empty(layers.shape, np.float32)
    untyped: Any = gaussian_filter
    untyped(layers, sigmas, output=smoothed, mode=mode, truncate=truncate)
    return smoothed


def gaussian_blur(images_BHWC: Pixels, dose: Dose) -> Levels:
    """Gaussian of σ pixels, the edge repeated."""
    (sigma,) = dose.constants
    return smooth(images_BHWC.astype(np.float32), sigma)


def defocus_blur(images_BHWC: Pixels, dose: Dose) -> Levels:
    """A disk of radius r, softened at its rim; reflected at the image's edge."""
    radius, alias_sigma = dose.constants
    kernel = disk_kernel(radius, alias_sigma)
    images = images_BHWC.astype(np.float32)
    blurred: Levels = np.empty_like(images)
    for i, image_HWC in enumerate(images):
        blurred[i] = cv2.filter2D(image_HWC, -1, kernel)
    return blurred


@functools.cache
def disk_kernel(radius: float, alias_sigma: float) -> Levels:
    """A normalised disk on a 17x17 grid (2r+1 where r > 8), smoothed by a 3x3 (5x5) Gaussian; trimmed.

    Smoothing mirrors at the grid's edge, so a disk that touches it (radius 8 and more) brightens by 1 %,
    as in the published images.
    """
    reach, side = (8, 3) if radius <= 8 else (int(radius), 5)
    offsets = np.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    kernel = cv2.GaussianBlur(disk / disk.sum(), ksize=(side, side), sigmaX=alias_sigma)
    # Without its empty rim the kernel is the same filter, several times faster.
    used = int(np.abs(offsets[kernel.any(axis=0)]).max())
    return np.asarray(kernel[reach - used : reach + used + 1, reach - used : reach + used + 1], np.float32)


def glass_blur(images_BHWC: Pixels, dose: Dose) -> Levels:
    """Smooth, let pixels take the colour of a near one, smooth again."""
    sigma, max_delta, passes = dose.constants
    images_BPC = smooth(images_BHWC.astype(np.float32), sigma).astype(np.uint8)
    batch, height, width, channels = images_BHWC.shape
    images_BPC = images_BPC.reshape(batch, height * width, channels)
    for i, rng in enumerate(dose.rngs):
        for _ in range(int(passes)):
            images_BPC[i] = images_BPC[i][glass_sources(rng, height, width, int(max_delta))]
    return smooth(images_BPC.reshape(images_BHWC.shape).astype(np.float32), sigma)


def glass_sources(rng: np.random.Generator, height: int, width: int, max_delta: int) -> Ints:
    """For each position, which position of the image before the pass its colour comes from.

    One pass visits the inner positions from the lower right to the upper left, and each copies (the
    published "swap" is a copy) from an offset drawn from [-max_delta, max_delta). A source visited
    earlier has itself been overwritten, so its own source counts, and so on. Those chains are followed
    for all positions at once, by doubling; for max_delta = 1 no source is visited earlier.
    """
    here = np.arange(height * width).reshape(height, width)
    source = here.copy()
    rows = slice(max_delta + 1, height - max_delta + 1)
    columns = slice(max_delta + 1, width - max_delta + 1)
    inner = here[rows, columns]
    offsets = rng.integers(-max_delta, max_delta, size=(2, *inner.shape), dtype=np.int64)
    source[rows, columns] = inner + offsets[0] * width + offsets[1]
    if max_delta == 1:
        return source.ravel()
    visited = np.zeros((height, width), dtype=bool)
    visited[rows, columns] = True
    visited_earlier = visited.ravel()[source] & (source > here)  # the visit is in descending order
    link = np.where(visited_earlier, source, here).ravel()
    while not np.array_equal(link, further := link[link]):
        link = further
    return source.ravel()[link]


def motion_blur(images_BHWC: Pixels, dose: Dose) -> Levels:
    """A one-sided streak at an angle from U(-45°, 45°)."""
    radius, sigma = dose.constants
    blurred: Levels = np.empty(images_BHWC.shape, np.float32)
    for i, rng in enumerate(dose.rngs):
        blurred[i] = streak(images_BHWC[i], radius=int(radius), sigma=sigma, degrees=rng.uniform(-45, 45))
    return blurred


def streak(layer: Pixels, *, radius: int, sigma: float, degrees: float) -> Levels:
    """[H, W] or [H, W, C] averaged along a line of 2r+1 whole-pixel shifts, the edge repeated.

    Shift i has weight exp(-i² / 2σ²), normalised, and lies at i·(cos, sin) rounded half down.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = math.radians(degrees)
    rows = np.ceil(steps * math.sin(angle) - 0.5).astype(int).tolist()
    columns = np.ceil(steps * math.cos(angle) - 0.5).astype(int).tolist()
    pad = 2 * radius
    framed = cv2.copyMakeBorder(layer, pad, pad, pad, pad, cv2.BORDER_REPLICATE).astype(np.float32)
    total: Levels = np.zeros(layer.shape, np.float32)
    shifted = np.empty_like(total)
    height, width = layer.shape[:2]
    for row, column, weight in zip(rows, columns, weights.tolist(), strict=True):
        if weight < 1e-7:  # too light to move a grey level, and the rest is lighter still
            break
        window = framed[pad + row : pad + row + height, pad + column : pad + column + width]
        total += np.multiply(window, weight, out=shifted)
    return total


def zoom_blur(images_BHWC: Pixels, dose: Dose) -> Levels:
    """The mean of the image and of its zooms into the centre."""
    start, stop, step = dose.constants
    batch, height, width, channels = images_BHWC.shape
    matrix_PP = zoom_blur_matrix(height, width, start=start, stop=stop, step=step)
    columns = images_BHWC.reshape(batch, height * width, channels).transpose(1, 0, 2)
    # Row by row, each nonzero adds one multiple of a row: no column's sum depends on the others.
    blurred = np.asarray(matrix_PP @ columns.astype(np.float32).reshape(height * width, -1))
    blurred = blurred.reshape(height * width, batch, channels).transpose(1, 0, 2)
    return np.ascontiguousarray(blurred, dtype=np.float32).reshape(images_BHWC.shape)


@functools.lru_cache(maxsize=8)
def zoom_blur_matrix(height: int, width: int, *, start: float, stop: float, step: float) -> Sparse:
    """The whole of zoom blur as one sparse matrix over pixel positions: most zooms share their pixels."""
    # arange in float64 decides whether `stop` itself is a level, as in the published arrays.
    factors = np.arange(start, stop, step).tolist()
    total: Sparse = sparse.eye_array(height * width, format="csr")
    for factor in factors:
        total = total + sparse.kron(
            zoom_taps(height, factor).matrix(), zoom_taps(width, factor).matrix(), format="csr"
        )
    return (total / (len(factors) + 1)).astype(np.float32)


@dataclass(frozen=True)
class ZoomTaps:
    """Along one axis, output position i is lower[i] · (1 - fraction[i]) + upper[i] · fraction[i]."""

    lower: Ints
    upper: Ints
    fraction: NDArray[np.float64]

    def matrix(self) -> Sparse:
        """The same as a sparse matrix, output by input."""
        size = len(self.lower)
        rows = np.tile(np.arange(size), 2)
        weights = np.concatenate([1 - self.fraction, self.fraction])
        entries = (weights, (rows, np.concatenate([self.lower, self.upper])))
        return sparse.csr_array(sparse.coo_array(entries, shape=(size, size)))


@functools.cache
def zoom_taps(size: int, factor: float) -> ZoomTaps:
    """Cut ceil(size / factor) from the centre, stretch it linearly end to end, cut `size` from the centre."""
    cut = math.ceil(size / factor)
    stretched = round(cut * factor)
    position = (np.arange(size) + (stretched - size) // 2) * ((cut - 1) / (stretched - 1))
    lower = np.minimum(np.floor(position), cut - 2).astype(np.int64)
    first = (size - cut) // 2
    return ZoomTaps(first + lower, first + lower + 1, position - lower)

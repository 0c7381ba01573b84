"""The blur corruptions: Gaussian, defocus, glass, motion and zoom blur.

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

from tasks.corruptions.draws import NUM_WORDS, WORD_BITS, Words, draw_words
from tasks.corruptions.severity import NUDGE, Dose, Levels
from tasks.records import Ints, Pixels

# How the image continues beyond its edge: outermost pixel repeated, or image mirrored.
Edge = Literal["nearest", "reflect"]
_BORDERS = {"nearest": cv2.BORDER_REPLICATE, "reflect": cv2.BORDER_REFLECT}
# Sparse types differ between releases of SciPy.
Sparse = Any
# With larger kernels (in pixels), OpenCV filters by Fourier transform, which is slower and less exact here.
DIRECT_AREA = 120
NUM_ANGLES = 1024
# Up to this many pixels per image, a filter is applied as a whole: zoom blur's matrix, elastic's full kernel. Above it,
# time and memory stay in proportion to the pixels, and results differ by less than a grey level.
WHOLE_PIXELS = 2**16
STRIP_VALUES = 2**18


def smooth(layers: Pixels | Levels, sigma: float, *, mode: Edge = "nearest", truncate: float = 4.0) -> Levels:
    """Smooth [B, H, W] or [B, H, W, C] with a Gaussian, over H and W only."""
    taps = gaussian_taps(sigma, truncate=truncate)
    smoothed: Levels = np.empty(layers.shape, np.float32)
    for layer, into in zip(layers, smoothed, strict=True):
        blurred = cv2.sepFilter2D(layer, cv2.CV_32F, taps, taps, borderType=_BORDERS[mode])
        into[:] = blurred.reshape(into.shape)
    return smoothed


@functools.lru_cache(maxsize=32)
def gaussian_taps(sigma: float, *, truncate: float) -> Levels:
    """exp(-i² / 2σ²), normalised, for |i| up to `truncate` · σ, rounded (SciPy's convention)."""
    reach = int(truncate * sigma + 0.5)
    weights = np.exp(-0.5 / max(sigma, 1e-6) ** 2 * np.arange(-reach, reach + 1) ** 2)
    return np.asarray(weights / weights.sum(), np.float32)


def gaussian_blur(images_BHWC: Pixels, dose: Dose) -> Levels:
    """Blur by a Gaussian of σ pixels; the edge is repeated."""
    (sigma,) = dose.constants
    return smooth(images_BHWC, sigma)


def defocus_blur(images_BHWC: Pixels, dose: Dose) -> Levels:
    """Blur by a disk of radius r with a softened rim; the image is mirrored at its edge."""
    radius, alias_sigma = dose.constants
    kernel = disk_kernel(radius, alias_sigma)
    blurred: Levels = np.empty(images_BHWC.shape, np.float32)
    for image_HWC, into in zip(images_BHWC.astype(np.float32), blurred, strict=True):
        into[:] = cv2.filter2D(image_HWC, -1, kernel).reshape(into.shape)
    return blurred


@functools.cache
def disk_kernel(radius: float, alias_sigma: float) -> Levels:
    """A normalised disk on a 17x17 grid (2r+1 if r > 8), smoothed by a 3x3 Gaussian (5x5 if r > 8) and trimmed.

    Smoothing mirrors at the grid's edge, so a disk that touches the edge (radius 8 and more) brightens the
    image by 1 %, as in the published images.
    """
    reach, side = (8, 3) if radius <= 8 else (int(radius), 5)
    offsets = np.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    kernel = cv2.GaussianBlur(disk / disk.sum(), ksize=(side, side), sigmaX=alias_sigma)
    # Trimming the empty rim gives the same filter, several times faster.
    used = int(np.abs(offsets[kernel.any(axis=0)]).max())
    return np.asarray(kernel[reach - used : reach + used + 1, reach - used : reach + used + 1], np.float32)


def glass_blur(images_BHWC: Pixels, dose: Dose) -> Levels:
    """Smooth, let each pixel take the colour of a nearby one, and smooth again."""
    sigma, max_delta, passes = dose.constants
    batch, height, width, channels = images_BHWC.shape
    smoothed_BHWC = (smooth(images_BHWC, sigma) + NUDGE).astype(np.uint8)
    sources_BP = glass_sources(batch, height, width, dose=dose, max_delta=int(max_delta), passes=int(passes))
    sources_BP += np.arange(batch)[:, None] * (height * width)
    shuffled = smoothed_BHWC.reshape(-1, channels).take(sources_BP.ravel(), axis=0)
    return smooth(shuffled.reshape(images_BHWC.shape), sigma)


def glass_sources(batch: int, height: int, width: int, *, dose: Dose, max_delta: int, passes: int) -> Ints:
    """For each image and position [B, P], the position that its colour comes from after all passes.

    A pass visits the inner positions from the lower right to the upper left. Each position copies (the
    published "swap" is a copy) from an offset drawn from [-max_delta, max_delta). A source that was visited
    earlier has itself been overwritten, so its own source counts, and so on. These chains are followed
    for all positions at once, by doubling; for max_delta = 1 no source is visited earlier.
    """
    here = np.arange(height * width).reshape(height, width)
    rows = slice(max_delta + 1, height - max_delta + 1)
    columns = slice(max_delta + 1, width - max_delta + 1)
    inner = here[rows, columns]
    offsets = _offsets(draw_words((batch, passes, 2, *inner.shape), dose), max_delta)
    total: Ints = np.broadcast_to(here.ravel(), (batch, height * width)).copy()
    for number in range(passes):
        source = np.broadcast_to(here, (batch, height, width)).copy()
        source[:, rows, columns] += offsets[:, number, 0] * width + offsets[:, number, 1]
        flat = source.reshape(batch, -1)
        if max_delta > 1:
            flat = _follow(flat, inner.ravel())
        total = np.take_along_axis(total, flat, axis=1)
    return total


def _offsets(words: Words, max_delta: int) -> Ints:
    """Uniform integers in [-max_delta, max_delta)."""
    return ((words.astype(np.int64) * (2 * max_delta)) >> WORD_BITS) - max_delta


def _follow(source_BP: Ints, inner: Ints) -> Ints:
    """Follow each chain of sources that were visited earlier to its end; return the final sources [B, P]."""
    here = np.arange(source_BP.shape[1])
    visited = np.zeros(source_BP.shape[1], dtype=bool)
    visited[inner] = True
    # Positions are visited in descending order.
    link = np.where(visited[source_BP] & (source_BP > here), source_BP, here)
    while not np.array_equal(link, further := np.take_along_axis(link, link, axis=1)):
        link = further
    return np.take_along_axis(source_BP, link, axis=1)


def motion_blur(images_BHWC: Pixels, dose: Dose) -> Levels:
    """Blur along a one-sided streak at an angle from U(-45°, 45°)."""
    radius, sigma = dose.constants
    blurred: Levels = np.empty(images_BHWC.shape, np.float32)
    angles_B = angles(draw_words((len(images_BHWC),), dose), low=-45, high=45)
    for image_HWC, degrees, into in zip(images_BHWC, angles_B, blurred, strict=True):
        into[:] = streak(image_HWC, radius=int(radius), sigma=sigma, degrees=degrees)
    return blurred


def angles(words_B: Words, *, low: float, high: float) -> list[float]:
    """For each word, one of 1,024 angles between `low` and `high`, in degrees.

    Half a step moves the end of a streak by a fraction of a pixel.
    """
    step = (high - low) / NUM_ANGLES
    return [low + step * (word + 0.5) for word in (words_B // (NUM_WORDS // NUM_ANGLES)).tolist()]


def streak(layer: Pixels | Levels, *, radius: int, sigma: float, degrees: float) -> Levels:
    """Average [H, W] or [H, W, C] along a line of 2r+1 whole-pixel shifts; the edge is repeated.

    Shift i has weight exp(-i² / 2σ²), normalised, and lies at i·(cos, sin), rounded half down.
    """
    layer = layer.astype(np.float32)
    kernels = streak_kernels(radius, sigma=sigma, degrees=degrees)
    if len(kernels) == 1:
        ((kernel, top, left),) = kernels
        blurred = cv2.filter2D(layer, -1, kernel, anchor=(-left, -top), borderType=cv2.BORDER_REPLICATE)
        return np.asarray(blurred, np.float32).reshape(layer.shape)
    pad = 2 * radius
    framed = cv2.copyMakeBorder(layer, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    height, width = layer.shape[:2]
    total: Levels = np.zeros(framed.shape, np.float32)[:height, :width]
    for kernel, top, left in kernels:
        rows = slice(pad + top, pad + top + height + kernel.shape[0] - 1)
        columns = slice(pad + left, pad + left + width + kernel.shape[1] - 1)
        total += cv2.filter2D(framed[rows, columns], -1, kernel, anchor=(0, 0))[:height, :width]
    return total.reshape(layer.shape)


@functools.lru_cache(maxsize=5 * NUM_ANGLES)
def streak_kernels(radius: int, *, sigma: float, degrees: float) -> list[tuple[Levels, int, int]]:
    """The streak, cut into kernels small enough for direct filtering, each with the shift of its first corner.

    Shifts whose weight is too small to change a grey level are left out.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    used = int(np.count_nonzero(weights > 1e-6))
    angle = math.radians(degrees)
    rows = np.ceil(steps[:used] * math.sin(angle) - 0.5).astype(int)
    columns = np.ceil(steps[:used] * math.cos(angle) - 0.5).astype(int)
    kernels, first = [], 0
    for end in range(1, used + 1):
        last = min(end, used - 1)  # rows and columns are monotone, so the two ends span the box
        height, width = abs(rows[last] - rows[first]) + 1, abs(columns[last] - columns[first]) + 1
        if end < used and height * width <= DIRECT_AREA:
            continue
        part = slice(first, end)
        top, left = int(rows[part].min()), int(columns[part].min())
        kernel: Levels = np.zeros((np.ptp(rows[part]) + 1, np.ptp(columns[part]) + 1), np.float32)
        np.add.at(kernel, (rows[part] - top, columns[part] - left), weights[part])
        kernels.append((kernel, top, left))
        first = end
    return kernels


def zoom_blur(images_BHWC: Pixels, dose: Dose) -> Levels:
    """Average the image and its zooms into the centre."""
    start, stop, step = dose.constants
    batch, height, width, channels = images_BHWC.shape
    if height * width > WHOLE_PIXELS:
        return zoom_by_zoom(images_BHWC, start=start, stop=stop, step=step)
    matrix_PP = zoom_blur_matrix(height, width, start=start, stop=stop, step=step)
    columns = images_BHWC.reshape(batch, height * width, channels).transpose(1, 0, 2)
    # Each nonzero adds one multiple of a row, so no column's sum depends on the other columns.
    blurred = np.asarray(matrix_PP @ columns.astype(np.float32).reshape(height * width, -1))
    blurred = blurred.reshape(height * width, batch, channels).transpose(1, 0, 2)
    return np.ascontiguousarray(blurred, dtype=np.float32).reshape(images_BHWC.shape)


def zoom_by_zoom(images_BHWC: Pixels, *, start: float, stop: float, step: float) -> Levels:
    """`zoom_blur` without its matrix, some rows at a time, so that no intermediate array is as large as the result."""
    height, width, channels = images_BHWC.shape[1:]
    factors = np.arange(start, stop, step).tolist()
    zooms = [(zoom_taps(height, factor), zoom_taps(width, factor)) for factor in factors]
    blurred: Levels = images_BHWC.astype(np.float32)
    num_rows = max(1, STRIP_VALUES // (width * channels))
    for image_HWC, into in zip(images_BHWC, blurred, strict=True):
        for top in range(0, height, num_rows):
            strip = slice(top, top + num_rows)
            for rows, columns in zooms:
                into[strip] += stretched(stretched(image_HWC, rows.part(strip), axis=0), columns, axis=1)
    blurred /= np.float32(len(factors) + 1)
    return blurred


@functools.lru_cache(maxsize=8)
def zoom_blur_matrix(height: int, width: int, *, start: float, stop: float, step: float) -> Sparse:
    """Zoom blur as one sparse matrix over pixel positions; most zooms read the same pixels."""
    # As in the published code, float64 rounding in arange decides whether `stop` itself is a factor.
    factors = np.arange(start, stop, step).tolist()
    total: Sparse = sparse.eye_array(height * width, format="csr")
    for factor in factors:
        total = total + sparse.kron(
            zoom_taps(height, factor).matrix(), zoom_taps(width, factor).matrix(), format="csr"
        )
    return (total / (len(factors) + 1)).astype(np.float32)


@dataclass(frozen=True)
class ZoomTaps:
    """Linear resampling of an axis: output i is (1 - fraction[i]) · input[lower[i]] + fraction[i] · input[upper[i]]."""

    lower: Ints
    upper: Ints
    fraction: NDArray[np.float64]

    def part(self, outputs: slice) -> ZoomTaps:
        """The taps of some output positions."""
        return ZoomTaps(self.lower[outputs], self.upper[outputs], self.fraction[outputs])

    def matrix(self) -> Sparse:
        """The same resampling as a sparse matrix, output by input."""
        size = len(self.lower)
        rows = np.tile(np.arange(size), 2)
        weights = np.concatenate([1 - self.fraction, self.fraction])
        entries = (weights, (rows, np.concatenate([self.lower, self.upper])))
        return sparse.csr_array(sparse.coo_array(entries, shape=(size, size)))


def stretched(layers: Pixels | Levels, taps: ZoomTaps, *, axis: int) -> Levels:
    """Interpolate `layers`, an array of images or channels, linearly along `axis` at the positions in `taps`."""
    shape = [1] * layers.ndim
    shape[axis] = -1
    upper = layers.take(taps.upper, axis=axis).astype(np.float32, copy=False)
    lower: Levels = layers.take(taps.lower, axis=axis).astype(np.float32, copy=False)
    upper -= lower
    upper *= taps.fraction.astype(np.float32).reshape(shape)
    lower += upper
    return lower


@functools.lru_cache(maxsize=256)
def zoom_taps(size: int, factor: float) -> ZoomTaps:
    """Taps that crop ceil(size / factor) from the centre, stretch it linearly end to end, and crop `size` of that."""
    cut = math.ceil(size / factor)
    stretched = round(cut * factor)
    position = (np.arange(size) + (stretched - size) // 2) * ((cut - 1) / (stretched - 1))
    lower = np.minimum(np.floor(position), cut - 2).astype(np.int64)
    first = (size - cut) // 2
    return ZoomTaps(first + lower, first + lower + 1, position - lower)

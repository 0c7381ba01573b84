"""Define the reference blurs, for one image in [0, 1] at a time and in float64.

They are the slow side of a comparison: written from the definitions, in the style of the public generators, without
using `tasks.corruptions`.
Source: definitions of Hendrycks & Dietterich, ICLR 2019, Appendix A.
"""

# H W C pixels; a Unit image is float64, 0..1

from __future__ import annotations

import math
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

Unit = NDArray[np.float64]
Image_u8 = NDArray[np.uint8]
Edge = Literal["nearest", "reflect"]


def levels(x: Unit) -> Image_u8:
    """Clip, multiply by 255 and truncate. The added 1e-6 keeps float64 rounding from losing a whole level."""
    cut: Image_u8 = (np.clip(x, 0, 1) * 255 + 1e-6).astype(np.uint8)
    return cut


def smooth(x: Unit, sigma: float, *, mode: Edge = "nearest", truncate: float = 4.0) -> Unit:
    """Apply Gaussian smoothing over H and W."""
    sigmas = (sigma, sigma, 0)[: x.ndim]
    return np.asarray(gaussian_filter(x, sigmas, mode=mode, truncate=truncate), np.float64)


def gaussian_blur(x: Unit, sigma: float) -> Unit:
    """Apply a Gaussian of σ pixels, truncated at 4 σ; edge pixels are repeated."""
    return smooth(x, sigma)


def defocus_blur(x: Unit, radius: float, alias_sigma: float) -> Unit:
    """Filter each channel with a softened disk; the image is mirrored at its edge, as in cv2.filter2D."""
    kernel = disk(radius, alias_sigma)
    return np.stack([cv2.filter2D(x[..., c], -1, kernel) for c in range(3)], axis=2)


def disk(radius: float, alias_sigma: float) -> Unit:
    """Return a normalised disk on a 17x17 grid (2r+1 if r > 8), smoothed by a 3x3 (5x5 if r > 8) Gaussian."""
    reach, side = (8, 3) if radius <= 8 else (int(radius), 5)
    across, down = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    aliased = (across**2 + down**2 <= radius**2).astype(np.float64)
    aliased /= aliased.sum()
    return np.asarray(cv2.GaussianBlur(aliased, ksize=(side, side), sigmaX=alias_sigma), np.float64)


def glass_blur(x: Unit, sigma: float, max_delta: float, passes: float, *, rng: np.random.Generator) -> Unit:
    """Smooth, round to grey levels, replace each pixel in turn by a nearby one, and smooth again."""
    reach = int(max_delta)
    pixels = levels(smooth(x, sigma))
    height, width = pixels.shape[:2]
    for _ in range(int(passes)):
        for h in range(height - reach, reach, -1):
            for w in range(width - reach, reach, -1):
                dx, dy = rng.integers(-reach, reach, size=2)
                pixels[h, w] = pixels[h + dy, w + dx]
    return smooth(pixels / 255.0, sigma)


def motion_blur(x: Unit, radius: float, sigma: float, *, rng: np.random.Generator) -> Unit:
    """Apply a one-sided streak at an angle from U(-45°, 45°)."""
    return streak(x, radius, sigma, degrees=rng.uniform(-45, 45))


def streak(x: Unit, radius: float, sigma: float, *, degrees: float) -> Unit:
    """Return the sum of 2r+1 shifted images, weighted by a one-sided Gaussian."""
    width = 2 * int(radius) + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    blurred = np.zeros_like(x)
    for i in range(width):
        dy = -math.ceil(i * math.sin(math.radians(degrees)) - 0.5)
        dx = -math.ceil(i * math.cos(math.radians(degrees)) - 0.5)
        blurred += weights[i] * shift(x, dx, dy)
    return blurred


def shift(x: Unit, dx: int, dy: int) -> Unit:
    """Shift right by dx and down by dy; the uncovered pixels repeat the edge."""
    moved = x
    for axis, distance in ((1, dx), (0, dy)):
        distance = max(-x.shape[axis] + 1, min(x.shape[axis] - 1, distance))
        moved = np.roll(moved, distance, axis=axis)
        turned = moved if axis == 0 else moved.swapaxes(0, 1)  # a view: its rows are columns of `moved`
        if distance > 0:
            turned[:distance] = turned[distance : distance + 1]
        elif distance < 0:
            turned[distance:] = turned[distance - 1 : distance]
    return moved


def zoom_blur(x: Unit, start: float, stop: float, step: float) -> Unit:
    """Return the mean of the image and its zooms into the centre."""
    factors = np.arange(start, stop, step)
    total = x.copy()
    for factor in factors:
        total += centre_zoom(x, float(factor))
    return total / (len(factors) + 1)


def centre_zoom(x: Unit, factor: float) -> Unit:
    """Return the centre of [H, W, C], enlarged bilinearly to H x W."""
    height, width = x.shape[:2]
    rows, columns = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - rows) // 2, (width - columns) // 2
    grown = np.asarray(zoom(x[top : top + rows, left : left + columns], (factor, factor, 1), order=1))
    top, left = (grown.shape[0] - height) // 2, (grown.shape[1] - width) // 2
    return grown[top : top + height, left : left + width]

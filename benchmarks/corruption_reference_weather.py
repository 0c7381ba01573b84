"""Define the reference weather corruptions (snow, frost, fog, spatter), for one image in [0, 1] at a time.

They are the slow side of a comparison: written from the definitions, in the style of the public generators. They use
nothing from `tasks.corruptions` but its photographs of frost.
Source: definitions of Hendrycks & Dietterich, ICLR 2019, Appendix A.
"""

# H W C pixels; a Unit image is float64, 0..1

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

import cv2
import numpy as np
from PIL import Image

from benchmarks.corruption_reference_blur import Image_u8, Unit, centre_zoom, levels, smooth, streak

WATER = np.array([175, 238, 238]) / 255
MUD = np.array([63, 42, 20]) / 255


@dataclass(frozen=True, kw_only=True)
class TableFacts:
    """A table's settings: it is made for images of `native_size` px, with frost scaled by `frost_scale`."""

    native_size: int
    frost_scale: float


def snow(
    x: Unit,
    mean: float,
    std: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    keep: float,
    *,
    rng: np.random.Generator,
) -> Unit:
    """Return a whitened image under streaks of flakes, and under the same streaks rotated by 180°."""
    layer: Unit = rng.normal(mean, std, size=x.shape[:2])
    layer = centre_zoom(layer[..., None], zoom)[..., 0]
    layer[layer < threshold] = 0
    layer = levels(layer) / 255.0
    layer = np.round(255 * streak(layer, radius, sigma, degrees=rng.uniform(-135, -45))) / 255
    grey = (x @ np.array([0.299, 0.587, 0.114]))[..., None]
    whitened = keep * x + (1 - keep) * np.maximum(x, 1.5 * grey + 0.5)
    snowy: Unit = whitened + (layer + np.rot90(layer, 2))[..., None]
    return snowy


def frost(
    x: Unit, image_weight: float, frost_weight: float, *, rng: np.random.Generator, facts: TableFacts
) -> Unit:
    """c0 · x + c1 · a random crop of one of five textures."""
    height, width = x.shape[:2]
    texture = frost_texture(1 + int(rng.integers(5)), facts.frost_scale, height=height, width=width)
    top = rng.integers(texture.shape[0] - height)
    left = rng.integers(texture.shape[1] - width)
    return image_weight * x + frost_weight * (texture[top : top + height, left : left + width] / 255.0)


@functools.cache
def frost_texture(number: int, scale: float, *, height: int, width: int) -> Image_u8:
    """Load a shrunk photograph once. The public generators read and shrink the file again for every image."""
    with resources.files("tasks.corruptions").joinpath(f"frost/frost{number}.jpg").open("rb") as file:
        texture = np.asarray(Image.open(file).convert("RGB"))
    scale = max(scale, (height + 1) / texture.shape[0], (width + 1) / texture.shape[1])
    return np.asarray(cv2.resize(texture, (0, 0), fx=scale, fy=scale), np.uint8)


def fog(x: Unit, strength: float, decay: float, *, rng: np.random.Generator) -> Unit:
    """x + c0 · plasma, darkened to keep the brightest value."""
    height, width = x.shape[:2]
    size = 1 << (max(height, width) - 1).bit_length()
    haze = plasma(size, decay, rng=rng)[:height, :width, None]
    brightest = x.max()
    hazed: Unit = (x + strength * haze) * brightest / (brightest + strength)
    return hazed


def plasma(size: int, decay: float, *, rng: np.random.Generator) -> Unit:
    """Diamond-square noise on a torus, in 0..1; each level adds U(-w², w²), and w is divided by `decay` per level."""
    cloud = np.zeros((size, size))
    step, wibble = size, 100.0

    def wobbled(total: Unit) -> Unit:
        return total / 4 + wibble * rng.uniform(-wibble, wibble, size=total.shape)

    while step >= 2:
        half = step // 2
        corners = cloud[::step, ::step]
        square = corners + np.roll(corners, -1, axis=0)
        square = square + np.roll(square, -1, axis=1)
        cloud[half::step, half::step] = wobbled(square)
        centres = cloud[half::step, half::step]
        above_below = centres + np.roll(centres, 1, axis=0)
        cloud[::step, half::step] = wobbled(above_below + corners + np.roll(corners, -1, axis=1))
        left_right = centres + np.roll(centres, 1, axis=1)
        cloud[half::step, ::step] = wobbled(left_right + corners + np.roll(corners, -1, axis=0))
        step, wibble = half, wibble / decay
    cloud -= cloud.min()
    cloud /= cloud.max()
    return cloud


def spatter(
    x: Unit,
    mean: float,
    std: float,
    smooth_sigma: float,
    threshold: float,
    strength: float,
    is_mud: float,
    *,
    rng: np.random.Generator,
) -> Unit:
    """Drops of water or splashes of mud where a smooth random layer is high."""
    liquid = smooth(rng.normal(mean, std, size=x.shape[:2]), smooth_sigma)
    liquid[liquid < threshold] = 0
    if is_mud:
        splash = smooth((liquid > threshold).astype(np.float64), strength)
        splash[splash < 0.8] = 0
        return x * (1 - splash[..., None]) + splash[..., None] * MUD
    return np.asarray(x + strength * drops(levels(liquid))[..., None] * WATER, np.float64)


def drops(liquid: Image_u8) -> Unit:
    """Return the light that a layer of water adds, in 0..1: its body times an embossed rim."""
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    _, distance = cv2.threshold(distance, 20, 20, cv2.THRESH_TRUNC)
    near = cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8))
    embossed = cv2.filter2D(near, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    rim = np.asarray(cv2.blur(embossed, (3, 3)), np.float64)
    light: Unit = liquid * rim
    return light / light.max() if light.max() else light

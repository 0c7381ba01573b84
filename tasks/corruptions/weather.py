"""Pixels in, grey levels seen through weather out: snow, frost, fog, spatter.

Source: definitions of Hendrycks & Dietterich, ICLR 2019, Appendix A, and of their published generator
(github.com/hendrycks/robustness). The frost textures are theirs (Apache-2.0), see frost/README.md.
"""

# B images in a batch, H W C pixels

from __future__ import annotations

import functools
from importlib import resources

import cv2
import numpy as np
from PIL import Image

from tasks.corruptions.blur import smooth, streak, zoom_taps
from tasks.corruptions.noise import normals, uniforms
from tasks.corruptions.severity import Dose, Levels
from tasks.records import Pixels

NUM_TEXTURES = 5
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma of R, G, B
WATER = np.array([175, 238, 238], np.float32)  # pale turquoise
MUD = np.array([63, 42, 20], np.float32)


def fog(images_BHWC: Pixels, dose: Dose) -> Levels:
    """x + c0 · plasma, then darkened so that the brightest value stays."""
    strength, decay = dose.constants
    height, width = images_BHWC.shape[1:3]
    haze_BHW = plasma(images_BHWC.shape[0], dose, size=next_power_of_two(max(height, width)), decay=decay)
    brightest_B111 = images_BHWC.max(axis=(1, 2, 3), keepdims=True).astype(np.float32)
    levels_BHWC: Levels = images_BHWC + (255 * strength) * haze_BHW[:, :height, :width, None]
    levels_BHWC *= brightest_B111 / (brightest_B111 + 255 * strength)
    return levels_BHWC


def next_power_of_two(size: int) -> int:
    """The least power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()


def plasma(batch: int, dose: Dose, *, size: int, decay: float) -> Levels:
    """Diamond-square clouds [B, size, size] in 0..1 on a torus; `size` is a power of two.

    From the coarsest grid to the finest, the centre of each square and then of each diamond is the mean
    of its four corners plus U(-w², w²), and w shrinks by `decay` (so the shock by its square).
    """
    shocks = uniforms((batch, size * size - 1), dose) * 2 - 1
    clouds: Levels = np.zeros((batch, size, size), np.float32)
    step, wibble, used = size, 100.0, 0
    while step >= 2:
        half, cells = step // 2, size // step
        shock = shocks[:, used : used + 3 * cells**2].reshape(batch, 3, cells, cells) * wibble**2
        corner = clouds[:, ::step, ::step].copy()
        east = corner + np.roll(corner, -1, axis=2)
        centre = (east + np.roll(east, -1, axis=1)) / 4 + shock[:, 0]
        south = corner + np.roll(corner, -1, axis=1)
        clouds[:, half::step, half::step] = centre
        clouds[:, ::step, half::step] = (east + centre + np.roll(centre, 1, axis=1)) / 4 + shock[:, 1]
        clouds[:, half::step, ::step] = (south + centre + np.roll(centre, 1, axis=2)) / 4 + shock[:, 2]
        step, wibble, used = half, wibble / decay, used + 3 * cells**2
    clouds -= clouds.min(axis=(1, 2), keepdims=True)
    clouds /= clouds.max(axis=(1, 2), keepdims=True)
    return clouds


def frost(images_BHWC: Pixels, dose: Dose) -> Levels:
    """c0 · x + c1 · a random crop of one of five photographed textures."""
    image_weight, frost_weight = dose.constants
    height, width = images_BHWC.shape[1:3]
    ice_BHWC: Levels = np.empty(images_BHWC.shape, np.float32)
    for i, rng in enumerate(dose.rngs):
        number = 1 + int(rng.integers(NUM_TEXTURES))
        texture = frost_texture(number, dose.frost_scale, height=height, width=width)
        top = rng.integers(texture.shape[0] - height)
        left = rng.integers(texture.shape[1] - width)
        ice_BHWC[i] = texture[top : top + height, left : left + width]
    ice_BHWC *= frost_weight
    ice_BHWC += images_BHWC * np.float32(image_weight)
    return ice_BHWC


@functools.cache
def frost_texture(number: int, scale: float, *, height: int, width: int) -> Pixels:
    """Texture 1..5 shrunk by `scale`, but never below a pixel more than the crop. Read-only."""
    with resources.files("tasks.corruptions").joinpath(f"frost/frost{number}.jpg").open("rb") as file:
        texture = np.asarray(Image.open(file).convert("RGB"))
    scale = max(scale, (height + 1) / texture.shape[0], (width + 1) / texture.shape[1])
    size = max(width + 1, round(texture.shape[1] * scale)), max(height + 1, round(texture.shape[0] * scale))
    resized = np.asarray(cv2.resize(texture, size), np.uint8)
    resized.setflags(write=False)
    return resized


def snow(images_BHWC: Pixels, dose: Dose) -> Levels:
    """A whitened image under flakes falling at an angle from U(-135°, -45°) and the same turned by 180°."""
    _, _, _, _, radius, sigma, keep = dose.constants
    batch, height, width = images_BHWC.shape[:3]
    flakes_BHW: Levels = np.empty((batch, height, width), np.float32)
    for i, rng in enumerate(dose.rngs):
        drawn_HW = rng.standard_normal((height, width), dtype=np.float32)
        flakes_BHW[i] = streak(
            snow_layer(drawn_HW, dose), radius=int(radius), sigma=sigma, degrees=rng.uniform(-135, -45)
        )
    images = images_BHWC.astype(np.float32)
    red, green, blue = (images[..., c] * np.float32(w) for c, w in enumerate(GREY_WEIGHTS))
    white_BHW = 1.5 * (red + green + blue) + 127.5
    levels_BHWC: Levels = np.maximum(images, white_BHW[..., None]) * (1 - keep) + images * keep
    levels_BHWC += (flakes_BHW + flakes_BHW[:, ::-1, ::-1])[..., None]
    return levels_BHWC


def snow_layer(drawn_HW: Levels, dose: Dose) -> Pixels:
    """Standard normals [H, W] in, still flakes out: zoomed, and black below the threshold."""
    mean, std, zoom, threshold = dose.constants[:4]
    rows, columns = (zoom_taps(size, zoom) for size in drawn_HW.shape)
    layer = drawn_HW * std + mean
    down, right = rows.fraction[:, None], columns.fraction
    layer = layer[rows.lower] * (1 - down) + layer[rows.upper] * down
    layer = layer[:, columns.lower] * (1 - right) + layer[:, columns.upper] * right
    flakes = np.where(layer < threshold, 0, np.minimum(layer, 1) * 255)
    return np.asarray(flakes, dtype=np.uint8)


def spatter(images_BHWC: Pixels, dose: Dose) -> Levels:
    """Drops of water or splashes of mud where a smooth random layer is high."""
    mean, std, smooth_sigma, threshold, strength, is_mud = dose.constants
    liquid_BHW = normals(images_BHWC.shape[:3], dose) * np.float32(std) + np.float32(mean)
    liquid_BHW = smooth(liquid_BHW, smooth_sigma)
    if is_mud:
        mask = smooth((liquid_BHW > threshold).astype(np.float32), strength)
        mask = np.where(mask < 0.8, np.float32(0), mask)[..., None]
        muddy: Levels = images_BHWC * (1 - mask) + mask * MUD
        return muddy
    liquid_BHW = np.where(liquid_BHW < threshold, 0, np.minimum(liquid_BHW, 1))
    drops = np.stack([water_mask(layer_HW) for layer_HW in (liquid_BHW * 255).astype(np.uint8)])
    return images_BHWC + np.float32(strength) * drops[..., None] * WATER


def water_mask(liquid_HW: Pixels) -> Levels:
    """How much light each pixel of a water layer adds, 0..1: its body times an embossed rim."""
    edges = cv2.Canny(liquid_HW, 50, 150)
    distance = cv2.distanceTransform(255 - edges, cv2.DIST_L2, 5)
    near = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    rim = cv2.blur(cv2.filter2D(cv2.equalizeHist(near), cv2.CV_8U, emboss), (3, 3))
    mask = liquid_HW.astype(np.float32) * np.asarray(rim, np.float32)
    peak = float(mask.max())
    if peak:  # 0 where the layer has no edge at all
        mask /= peak
    return mask

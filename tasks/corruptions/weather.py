"""The weather corruptions: snow, frost, fog and spatter.

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

from tasks.corruptions.blur import ZoomTaps, angles, smooth, streak, stretched, zoom_taps
from tasks.corruptions.draws import (
    WORD_BITS,
    Words,
    draw_words,
    lookup,
    normal_quantiles,
    normals,
    spread,
)
from tasks.corruptions.plasma import haze
from tasks.corruptions.severity import Dose, Levels
from tasks.records import Pixels

NUM_TEXTURES = 5
# Frost textures up to this many pixels are cached; of larger ones only the window is made.
KEPT_TEXTURE = 2**20
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601 luma of R, G, B
WATER = np.array([175, 238, 238], np.float32)  # pale turquoise
MUD = np.array([63, 42, 20], np.float32)
EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


def fog(images_BHWC: Pixels, dose: Dose) -> Levels:
    """x + c0 · plasma, then darkened to keep the brightest value."""
    strength, decay = dose.constants
    haze_BHW = haze(images_BHWC.shape[:3], dose, decay=decay)
    brightest_B111 = images_BHWC.max(axis=(1, 2, 3), keepdims=True).astype(np.float32)
    haze_BHW *= np.float32(255 * strength)
    levels_BHWC: Levels = spread(haze_BHW, images_BHWC.shape[3]) + images_BHWC
    levels_BHWC *= brightest_B111 / (brightest_B111 + 255 * strength)
    return levels_BHWC


def frost(images_BHWC: Pixels, dose: Dose) -> Levels:
    """c0 · x + c1 · (a random crop of one of five photographed textures)."""
    image_weight, frost_weight = dose.constants
    levels_BHWC: Levels = images_BHWC * np.float32(image_weight)
    levels_BHWC += frost_crops(images_BHWC.shape, dose) * np.float32(frost_weight)
    return levels_BHWC


def frost_crops(shape: tuple[int, ...], dose: Dose) -> Pixels:
    """For each image a random crop of a random texture, in the images' shape; its luma for one channel."""
    batch, height, width, channels = shape
    crops_BHWC = np.empty(shape, np.uint8)
    for words, into in zip(draw_words((batch, 3), dose).tolist(), crops_BHWC, strict=True):
        number = 1 + (words[0] * NUM_TEXTURES >> WORD_BITS)
        rows, columns = texture_size(number, dose.frost_scale, height=height, width=width)
        top = words[1] * (rows - height) >> WORD_BITS
        left = words[2] * (columns - width) >> WORD_BITS
        window = slice(top, top + height), slice(left, left + width)
        if rows * columns <= KEPT_TEXTURE:
            crop = frost_texture(number, rows, columns)[window]
        else:
            crop = frost_window(photograph(number), (rows, columns), window)
        into[:] = crop if channels == 3 else cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)[..., None]
    return crops_BHWC


def texture_size(number: int, scale: float, *, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of texture 1..5 shrunk by `scale`, but at least one pixel more than the crop."""
    rows, columns = photograph(number).shape[:2]
    scale = max(scale, (height + 1) / rows, (width + 1) / columns)
    return max(height + 1, round(rows * scale)), max(width + 1, round(columns * scale))


@functools.cache
def photograph(number: int) -> Pixels:
    """Texture 1..5 as shipped. Read-only."""
    with resources.files("tasks.corruptions").joinpath(f"frost/frost{number}.jpg").open("rb") as file:
        texture = np.array(Image.open(file, formats=["JPEG"]).convert("RGB"))
    texture.setflags(write=False)
    return texture


@functools.lru_cache(maxsize=16)
def frost_texture(number: int, rows: int, columns: int) -> Pixels:
    """Texture 1..5, resized. Read-only."""
    resized = np.asarray(cv2.resize(photograph(number), (columns, rows)), np.uint8)
    resized.setflags(write=False)
    return resized


def frost_window(texture_HWC: Pixels, size: tuple[int, int], window: tuple[slice, slice]) -> Pixels:
    """One window of the texture at a size; equals OpenCV's bilinear resize within one grey level."""
    for axis in (0, 1):
        texture_HWC = _window(texture_HWC, size[axis], window[axis], axis=axis)
    return texture_HWC


def _window(texture_HWC: Pixels, size: int, window: slice, *, axis: int) -> Pixels:
    """A window of rows or columns of the texture with one axis resized to `size`."""
    given = texture_HWC.shape[axis]
    position = (np.arange(window.start, window.stop) + 0.5) * (given / size) - 0.5
    position = np.clip(position, 0, given - 1)
    lower = np.minimum(np.floor(position), given - 2).astype(np.int64)
    part = stretched(texture_HWC, ZoomTaps(lower, lower + 1, position - lower), axis=axis)
    return np.rint(part).astype(np.uint8)


def snow(images_BHWC: Pixels, dose: Dose) -> Levels:
    """Whiten the image, and add flakes that fall at an angle from U(-135°, -45°) and the same flakes turned by 180°."""
    _, _, _, _, radius, sigma, keep = dose.constants
    batch, height, width, channels = images_BHWC.shape
    words = draw_words((batch, 1 + height * width), dose)
    layers_BHW = snow_layers(words[:, 1:].reshape(batch, height, width), dose)
    flakes_BHW: Levels = np.empty((batch, height, width), np.float32)
    angles_B = angles(words[:, 0], low=-135, high=-45)
    for layer_HW, degrees, into in zip(layers_BHW, angles_B, flakes_BHW, strict=True):
        into[:] = streak(layer_HW, radius=int(radius), sigma=sigma, degrees=degrees)
    white_BHW = luma(images_BHWC)
    white_BHW *= 1.5
    white_BHW += 127.5
    levels_BHWC: Levels = spread(white_BHW, channels)
    np.maximum(levels_BHWC, images_BHWC, out=levels_BHWC)
    levels_BHWC *= np.float32(1 - keep)
    levels_BHWC += images_BHWC * np.float32(keep)
    levels_BHWC += spread(flakes_BHW + flakes_BHW[:, ::-1, ::-1], channels)
    return levels_BHWC


def snow_layers(words_BHW: Words, dose: Dose) -> Pixels:
    """Flakes before they fall, from random words [B, H, W]: zoomed, and black below the threshold."""
    mean, std, zoom, threshold = dose.constants[:4]
    layers = lookup(normal_quantiles() * np.float32(std) + np.float32(mean), words_BHW)
    rows, columns = (zoom_taps(size, zoom) for size in words_BHW.shape[1:])
    if zoom != 1:
        layers = stretched(stretched(layers, rows, axis=1), columns, axis=2)
    np.minimum(layers, 1, out=layers)
    layers[layers < threshold] = 0
    layers *= 255
    return layers.astype(np.uint8)


def luma(images_BHWC: Pixels) -> Levels:
    """ITU-R BT.601 luma [B, H, W] of RGB, or the one channel of grey."""
    if images_BHWC.shape[3] == 1:
        return images_BHWC[..., 0].astype(np.float32)
    grey_BHW: Levels = images_BHWC[..., 0] * GREY_WEIGHTS[0]
    grey_BHW += images_BHWC[..., 1] * GREY_WEIGHTS[1]
    grey_BHW += images_BHWC[..., 2] * GREY_WEIGHTS[2]
    return grey_BHW


def spatter(images_BHWC: Pixels, dose: Dose) -> Levels:
    """Add drops of water or splashes of mud where a smooth random layer is high."""
    mean, std, smooth_sigma, threshold, strength, is_mud = dose.constants
    channels = images_BHWC.shape[3]
    liquid_BHW = smooth(normals(images_BHWC.shape[:3], dose), smooth_sigma)
    # Smoothing is linear and keeps constants, so mean and deviation can be applied after it.
    liquid_BHW *= np.float32(std)
    liquid_BHW += np.float32(mean)
    if is_mud:
        mask_BHW = smooth((liquid_BHW > threshold).astype(np.float32), strength)
        mask_BHW[mask_BHW < 0.8] = 0
        mask_BHWC = spread(mask_BHW, channels)
        return images_BHWC * (1 - mask_BHWC) + _tinted(mask_BHWC, MUD)
    np.minimum(liquid_BHW, 1, out=liquid_BHW)
    liquid_BHW[liquid_BHW < threshold] = 0
    liquid_BHW *= 255
    drops_BHW = np.empty(liquid_BHW.shape, np.float32)
    for layer_HW, into in zip(liquid_BHW.astype(np.uint8), drops_BHW, strict=True):
        into[:] = water_mask(layer_HW)
    levels_BHWC = _tinted(spread(drops_BHW, channels), np.float32(strength) * WATER)
    levels_BHWC += images_BHWC
    return levels_BHWC


def _tinted(layers_BHWC: Levels, rgb: Levels) -> Levels:
    """Multiply the layers by the colour, or by its luma for images of one channel; in place."""
    width, channels = layers_BHWC.shape[2:]
    colour = rgb if channels == 3 else np.array([rgb @ GREY_WEIGHTS], np.float32)
    rows_BHX = layers_BHWC.reshape(*layers_BHWC.shape[:2], -1)  # whole rows multiply faster than pixels
    rows_BHX *= np.tile(colour, width)
    return layers_BHWC


def water_mask(liquid_HW: Pixels) -> Levels:
    """The light that each pixel of a water layer adds, 0..1: the layer times an embossed rim."""
    edges = cv2.Canny(liquid_HW, 50, 150)
    distance = cv2.distanceTransform(255 - edges, cv2.DIST_L2, 5)
    near = cv2.blur(np.minimum(distance, 20, out=distance), (3, 3)).astype(np.uint8)
    rim = cv2.blur(cv2.filter2D(cv2.equalizeHist(near), cv2.CV_8U, EMBOSS), (3, 3))
    mask: Levels = np.multiply(liquid_HW, rim, dtype=np.float32)
    peak = float(mask.max())
    if peak:  # 0 if the layer has no edges
        mask *= 1 / peak
    return mask

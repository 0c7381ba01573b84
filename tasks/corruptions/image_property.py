"""The image-property corruptions: brightness, contrast and saturation. They draw no random numbers.

Images are not converted to HSV. With M the largest and m the smallest channel, V = M and S = (M - m) / M, and at a
fixed hue a channel is V · (1 - S · g), g = (M - x) / (M - m). So a change of V scales the channels, and a
change of S scales their distances from M; both factors are looked up by grey level.
Source: definitions of Hendrycks & Dietterich, ICLR 2019, Appendix A.
"""

# B images in a batch, H W C pixels

from __future__ import annotations

import functools

import cv2
import numpy as np

from tasks.corruptions.draws import lookup, spread
from tasks.corruptions.severity import NUDGE, Dose, Levels
from tasks.records import Pixels

LEVELS = np.arange(256)


def brightness(images_BHWC: Pixels, dose: Dose) -> Pixels:
    """Add c to V of HSV, keeping hue and saturation. Black has no hue and becomes grey."""
    (added,) = dose.constants
    places_BHWC = spread(largest_channel(images_BHWC), images_BHWC.shape[3]).astype(np.uint16)
    places_BHWC <<= 8
    places_BHWC |= images_BHWC
    return lookup(brighter_levels(added), places_BHWC)


def largest_channel(images_BHWC: Pixels) -> Pixels:
    """HSV's V [B, H, W]."""
    return functools.reduce(np.maximum, np.moveaxis(images_BHWC, -1, 0))


@functools.lru_cache(maxsize=8)
def brighter_levels(added: float) -> Pixels:
    """For each V and each level of a channel, the channel's level at V + `added`; flattened."""
    value = LEVELS[:, None].astype(float)
    brighter = np.minimum(value + 255 * added, 255)
    levels = np.where(value > 0, LEVELS * brighter / np.maximum(value, 1), brighter)
    return np.clip(levels + NUDGE, 0, 255).astype(np.uint8).ravel()


def saturate(images_BHWC: Pixels, dose: Dose) -> Pixels | Levels:
    """Change S of HSV to S · c0 + c1, keeping hue and value. Grey has hue 0 by convention, so c1 > 0 turns it red.

    Images of one channel have no saturation and are returned unchanged.
    """
    if images_BHWC.shape[3] == 1:
        return images_BHWC
    factor, added = dose.constants
    value_BHW = largest_channel(images_BHWC)
    smallest_BHW = functools.reduce(np.minimum, np.moveaxis(images_BHWC, -1, 0))
    places_BHW = value_BHW.astype(np.uint16)
    places_BHW <<= 8
    places_BHW |= value_BHW - smallest_BHW
    value_BHWC = spread(value_BHW, 3)
    levels_BHWC: Levels = (value_BHWC - images_BHWC).astype(np.float32)
    levels_BHWC *= spread(lookup(stretch(factor, added), places_BHW), 3)
    if added:
        reddened_BHW = np.where(value_BHW == smallest_BHW, value_BHW * np.float32(min(added, 1)), 0)
        levels_BHWC[..., 1:] += reddened_BHW.astype(np.float32)[..., None]
    np.subtract(value_BHWC, levels_BHWC, out=levels_BHWC)
    return levels_BHWC


@functools.lru_cache(maxsize=8)
def stretch(factor: float, added: float) -> Levels:
    """For each V and V - m, the factor that scales distances from V if S becomes S · factor + added; 0 for grey."""
    value, spread = LEVELS[:, None].astype(float), LEVELS.astype(float)
    saturation = np.minimum(spread / np.maximum(value, 1) * factor + added, 1)
    return np.asarray(value * saturation / np.maximum(spread, 1), np.float32).ravel()


def contrast(images_BHWC: Pixels, dose: Dose) -> Levels:
    """(x - mean) · c + mean, with the mean of each channel of each image."""
    (factor,) = dose.constants
    channels = images_BHWC.shape[3]
    # One image at a time, in float64: a float sum over a batch would depend on the batch.
    means_BC = [cv2.mean(image_HWC)[:channels] for image_HWC in images_BHWC]
    kept_BC = np.array(means_BC, np.float32).reshape(-1, channels) * np.float32(1 - factor)
    levels_BHWC: Levels = images_BHWC * np.float32(factor)
    rows_BHX = levels_BHWC.reshape(*images_BHWC.shape[:2], -1)  # whole rows add up faster than pixels
    rows_BHX += np.tile(kept_BC, images_BHWC.shape[2])[:, None]
    return levels_BHWC

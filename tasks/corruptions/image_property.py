"""Pixels in, grey levels of another brightness, contrast or saturation out; nothing is drawn.

HSV is never formed: with M the largest and m the smallest channel, V = M and S = (M - m) / M, and at a
fixed hue a channel is V · (1 - S · g), g = (M - x) / (M - m). So a change of V scales the channels and a
change of S scales their distance from M.
Source: definitions of Hendrycks & Dietterich, ICLR 2019, Appendix A.
"""

# B images in a batch, H W C pixels

from __future__ import annotations

import numpy as np

from tasks.corruptions.severity import Dose, Levels
from tasks.records import Pixels


def brightness(images_BHWC: Pixels, dose: Dose) -> Levels:
    """HSV V + c, hue and saturation kept. Black has no hue and becomes grey."""
    (added,) = dose.constants
    value_BHW1 = images_BHWC.max(axis=3, keepdims=True).astype(np.float32)
    brighter_BHW1 = np.minimum(value_BHW1 + 255 * added, 255)
    scale_BHW1 = brighter_BHW1 / np.maximum(value_BHW1, 1)
    levels_BHWC: Levels = np.where(value_BHW1 > 0, images_BHWC * scale_BHW1, brighter_BHW1)
    return levels_BHWC


def saturate(images_BHWC: Pixels, dose: Dose) -> Levels:
    """HSV S · c0 + c1, hue and value kept. Grey has hue 0 by convention, so c1 > 0 turns it red."""
    factor, added = dose.constants
    value_BHW1 = images_BHWC.max(axis=3, keepdims=True).astype(np.float32)
    spread_BHW1 = value_BHW1 - images_BHWC.min(axis=3, keepdims=True)
    saturation_BHW1 = spread_BHW1 / np.maximum(value_BHW1, 1)
    saturation_BHW1 = np.minimum(saturation_BHW1 * factor + added, 1)
    distance_BHWC = (value_BHW1 - images_BHWC) / np.maximum(spread_BHW1, 1)
    red_distance_C = np.array([0, 1, 1], np.float32)
    distance_BHWC = np.where(spread_BHW1 > 0, distance_BHWC, red_distance_C)
    levels_BHWC: Levels = value_BHW1 - value_BHW1 * saturation_BHW1 * distance_BHWC
    return levels_BHWC


def contrast(images_BHWC: Pixels, dose: Dose) -> Levels:
    """(x - mean) · c + mean, with the mean of each channel of each image."""
    (factor,) = dose.constants
    # Summed as integers: a float sum depends on the order of addition, and that on the batch size.
    sums_B11C = images_BHWC.sum(axis=(1, 2), dtype=np.int64, keepdims=True)
    means_B11C = sums_B11C / (images_BHWC.shape[1] * images_BHWC.shape[2])
    kept: Levels = (means_B11C * (1 - factor)).astype(np.float32)
    levels_BHWC: Levels = images_BHWC * np.float32(factor)
    levels_BHWC += kept
    return levels_BHWC

"""The noise corruptions: Gaussian, shot, impulse and speckle noise.

Source: definitions of Hendrycks & Dietterich, ICLR 2019, Appendix A.
"""

# B images in a batch, H W C pixels

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from tasks.corruptions.draws import NUM_WORDS, WORD_BITS, draw_words, lookup, normal_quantiles
from tasks.corruptions.severity import NUDGE, Dose, Levels
from tasks.records import Pixels


def gaussian_noise(images_BHWC: Pixels, dose: Dose) -> Pixels:
    """x + N(0, σ)."""
    (sigma,) = dose.constants
    # x is a whole level, so truncating the sum is the same as adding the truncated noise.
    noisy_BHWC = lookup(whole_levels(sigma), draw_words(images_BHWC.shape, dose))
    noisy_BHWC += images_BHWC
    return np.clip(noisy_BHWC, 0, 255, out=noisy_BHWC).astype(np.uint8)


@functools.lru_cache(maxsize=8)
def whole_levels(sigma: float) -> NDArray[np.int16]:
    """For each 16-bit word, Gaussian noise N(0, σ) in grey levels, rounded down."""
    return np.asarray(np.floor(255 * sigma * normal_quantiles() + NUDGE), np.int16)


def speckle_noise(images_BHWC: Pixels, dose: Dose) -> Levels:
    """x + x · N(0, σ)."""
    (sigma,) = dose.constants
    factors = 1 + np.float32(sigma) * normal_quantiles()
    noisy_BHWC: Levels = lookup(factors, draw_words(images_BHWC.shape, dose))
    noisy_BHWC *= images_BHWC
    return noisy_BHWC


def shot_noise(images_BHWC: Pixels, dose: Dose) -> Pixels:
    """Poisson(x · λ) / λ. Fewer photons λ give more noise."""
    (photons,) = dose.constants
    places_BHWC = images_BHWC.astype(np.int32)
    places_BHWC <<= WORD_BITS
    places_BHWC |= draw_words(images_BHWC.shape, dose)
    return shot_levels(photons).take(places_BHWC)


@functools.lru_cache(maxsize=2)  # 16 MB each
def shot_levels(photons: float) -> Pixels:
    """For each clean grey level and each word, the grey level after Poisson noise; flattened."""
    counts = np.arange(int(photons + 10 * math.sqrt(photons) + 20))
    noisy = np.minimum(counts * (255 / photons) + NUDGE, 255).astype(np.uint8)
    rates = np.arange(1, 256)[:, None] * (photons / 255)
    probabilities = np.exp(counts * np.log(rates) - rates - gammaln(counts + 1))
    # A word stands for the probability in the middle of its interval.
    ends = np.floor(np.cumsum(probabilities, axis=1) * NUM_WORDS + 0.5).astype(np.int64)
    ends[:, -1] = NUM_WORDS
    levels: Pixels = np.zeros((256, NUM_WORDS), np.uint8)  # black stays black
    for level, widths in enumerate(np.diff(ends, axis=1, prepend=0), start=1):
        levels[level] = noisy.repeat(widths)
    return levels.ravel()


def impulse_noise(images_BHWC: Pixels, dose: Dose) -> Pixels:
    """Replace a fraction of the channel values by 255 (salt) or 0 (pepper), half each."""
    (amount,) = dose.constants
    words_BHWC = draw_words(images_BHWC.shape, dose)
    salt_or_pepper = words_BHWC < round(amount * NUM_WORDS)
    pepper = words_BHWC < round(amount / 2 * NUM_WORDS)
    # -True is 255 in uint8: set all bits of the values that are hit, then clear those of pepper.
    noisy_BHWC: Pixels = images_BHWC | -salt_or_pepper.view(np.uint8)
    noisy_BHWC &= ~-pepper.view(np.uint8)
    return noisy_BHWC

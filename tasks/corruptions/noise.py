"""Pixels in, noisy grey levels out: Gaussian, shot, impulse and speckle noise.

Source: definitions of Hendrycks & Dietterich, ICLR 2019, Appendix A.
"""

# B images in a batch, H W C pixels

from __future__ import annotations

import numpy as np

from tasks.corruptions.severity import Dose, Levels
from tasks.records import Pixels


def gaussian_noise(images_BHWC: Pixels, dose: Dose) -> Levels:
    """x + N(0, σ)."""
    (sigma,) = dose.constants
    noise_BHWC = normals(images_BHWC.shape, dose)
    noise_BHWC *= 255 * sigma
    noise_BHWC += images_BHWC
    return noise_BHWC


def speckle_noise(images_BHWC: Pixels, dose: Dose) -> Levels:
    """x + x · N(0, σ)."""
    (sigma,) = dose.constants
    noise_BHWC = normals(images_BHWC.shape, dose)
    noise_BHWC *= sigma
    noise_BHWC += 1
    noise_BHWC *= images_BHWC
    return noise_BHWC


def shot_noise(images_BHWC: Pixels, dose: Dose) -> Levels:
    """Poisson(x · λ) / λ: the fewer photons λ, the noisier."""
    (photons,) = dose.constants
    # Of the 256 grey levels, so that the division is not repeated for every pixel.
    rates_by_level = np.arange(256) * (photons / 255)
    levels_BHWC: Levels = np.empty(images_BHWC.shape, np.float32)
    for i, rng in enumerate(dose.rngs):
        levels_BHWC[i] = rng.poisson(rates_by_level[images_BHWC[i]])
    levels_BHWC *= 255 / photons
    return levels_BHWC


def impulse_noise(images_BHWC: Pixels, dose: Dose) -> Pixels:
    """Salt and pepper on a fraction of the channel values, half each."""
    (amount,) = dose.constants
    drawn_BHWC = uniforms(images_BHWC.shape, dose)
    noisy_BHWC = images_BHWC.copy()
    np.copyto(noisy_BHWC, 255, where=drawn_BHWC < amount)
    np.copyto(noisy_BHWC, 0, where=drawn_BHWC < amount / 2)
    return noisy_BHWC


def normals(shape: tuple[int, ...], dose: Dose) -> Levels:
    """Standard normals [B, ...], each image's from its own generator."""
    drawn: Levels = np.empty(shape, np.float32)
    for i, rng in enumerate(dose.rngs):
        rng.standard_normal(out=drawn[i], dtype=np.float32)
    return drawn


def uniforms(shape: tuple[int, ...], dose: Dose) -> Levels:
    """Uniforms from [0, 1) [B, ...], each image's from its own generator."""
    drawn: Levels = np.empty(shape, np.float32)
    for i, rng in enumerate(dose.rngs):
        rng.random(out=drawn[i], dtype=np.float32)
    return drawn

"""Draw the random numbers of a batch, as 16-bit words that index tables of quantiles.

A word is one of 65,536 equally likely values. Looked up in a table of quantiles, it is a draw from any other
distribution, exact to 2⁻¹⁶ in probability: finer than a grey level can show, and several times faster than
drawing from the distribution itself. The tails of the normal distribution end at 4.3 σ.
"""

# B images in a batch

from __future__ import annotations

import functools
import math
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from tasks.corruptions.severity import Dose, Levels

# Increase this if the same key draws other numbers than before, so that a run never mixes pixels of both.
DRAWS_VERSION = 2
WORD_BITS = 16
NUM_WORDS = 2**WORD_BITS
Words = NDArray[np.uint16]
Value = TypeVar("Value", np.uint8, np.uint16, np.int16, np.float32)


def draw_words(shape: tuple[int, ...], dose: Dose) -> Words:
    """Uniform 16-bit words [B, ...], each image's from its own generator."""
    size = math.prod(shape[1:])
    raw_size = -(-size // 4)
    words: Words = np.empty((shape[0], size), np.uint16)
    for i, rng in enumerate(dose.rngs):
        words[i] = rng.bit_generator.random_raw(raw_size).view(np.uint16)[:size]
    return words.reshape(shape)


def lookup(table: NDArray[Value], words: Words) -> NDArray[Value]:
    """table[words], for a table with one value for each word; several times faster than indexing."""
    values = cv2.LUT(words.reshape(len(words), -1), table.reshape(1, NUM_WORDS))
    return np.asarray(values, table.dtype).reshape(words.shape)


def spread(layers: NDArray[Value], channels: int) -> NDArray[Value]:
    """[B, H, W] repeated to [B, H, W, C], for C = 1 or 3."""
    if channels == 1:
        return layers[..., None]
    grey = layers.reshape(-1, layers.shape[2])
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), layers.dtype).reshape(*layers.shape, 3)


def normals(shape: tuple[int, ...], dose: Dose) -> Levels:
    """Standard normals [B, ...]."""
    return lookup(normal_quantiles(), draw_words(shape, dose))


def uniforms(shape: tuple[int, ...], dose: Dose) -> Levels:
    """Uniform numbers in (0, 1) [B, ...]."""
    drawn: Levels = draw_words(shape, dose).astype(np.float32)
    drawn += np.float32(0.5)
    drawn *= np.float32(1 / NUM_WORDS)
    return drawn


@functools.cache
def normal_quantiles() -> Levels:
    """For each word, the standard normal quantile at the middle of the word's interval. Read-only."""
    quantiles: Levels = ndtri((np.arange(NUM_WORDS) + 0.5) / NUM_WORDS).astype(np.float32)
    quantiles.setflags(write=False)
    return quantiles

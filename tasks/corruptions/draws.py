"""A batch's generators in, its random numbers out: 16-bit words, and what is looked up by them.

A word is a uniform draw of 1 in 65,536. Looked up in a table of quantiles it is a draw of any other
distribution, exact to 2⁻¹⁶ in probability: finer than a grey level can show, and several times faster than
drawing from the distribution itself. The normal's tails end at 4.3 σ.
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

# Raised when the same key comes to draw other numbers, so that pixels of both are never mixed in a run.
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
    """table[words], by a table of one value for each word; several times faster for a batch."""
    found = cv2.LUT(words.reshape(len(words), -1), table.reshape(1, NUM_WORDS))
    return np.asarray(found, table.dtype).reshape(words.shape)


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
    """Uniforms from (0, 1) [B, ...]."""
    drawn: Levels = draw_words(shape, dose).astype(np.float32)
    drawn += np.float32(0.5)
    drawn *= np.float32(1 / NUM_WORDS)
    return drawn


@functools.cache
def normal_quantiles() -> Levels:
    """By word: the quantile of the standard normal in the middle of the word's interval. Read-only."""
    quantiles: Levels = ndtri((np.arange(NUM_WORDS) + 0.5) / NUM_WORDS).astype(np.float32)
    quantiles.setflags(write=False)
    return quantiles

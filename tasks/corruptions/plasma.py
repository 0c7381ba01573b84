"""The diamond-square plasma that makes the clouds of fog.

Source: the published generator of Hendrycks & Dietterich, ICLR 2019 (github.com/hendrycks/robustness).
"""

# B images in a batch, H W pixels, M N points of a grid

from __future__ import annotations

import itertools
import math

import numpy as np

from tasks.corruptions.draws import uniforms
from tasks.corruptions.severity import Dose, Levels

# A plasma that is larger than its image by more than this factor is made in full only up to this many cells per side.
PLASMA_EXCESS, FULL_CELLS = 4, 512


def haze(shape: tuple[int, ...], dose: Dose, *, decay: float) -> Levels:
    """The upper left part [B, H, W] of a plasma; its side is the longer side rounded up to a power of two."""
    batch, height, width = shape
    size = next_power_of_two(max(height, width))
    if size > FULL_CELLS and size**2 > PLASMA_EXCESS * height * width:
        return plasma_window(batch, dose, size=size, height=height, width=width, decay=decay)
    return np.ascontiguousarray(plasma(batch, dose, size=size, decay=decay)[:, :height, :width])


def next_power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def plasma(batch: int, dose: Dose, *, size: int, decay: float) -> Levels:
    """Diamond-square clouds [B, size, size] in 0..1 on a torus; `size` is a power of two.

    From the coarsest grid to the finest, the centre of each square and then of each diamond is the mean
    of its four corners plus a shock from U(-w², w²). After each grid, w is divided by `decay`.
    """
    shocks = uniforms((batch, size * size - 1), dose) * 2 - 1
    clouds, _ = _plasma(shocks, size=size, decay=decay)
    clouds -= clouds.min(axis=(1, 2), keepdims=True)
    clouds /= clouds.max(axis=(1, 2), keepdims=True)
    return clouds


def _plasma(shocks: Levels, *, size: int, decay: float) -> tuple[Levels, float]:
    """The clouds for given uniforms in (-1, 1), before they are scaled to 0..1, and the next w."""
    batch = len(shocks)
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
    return clouds, wibble


def plasma_window(batch: int, dose: Dose, *, size: int, height: int, width: int, decay: float) -> Levels:
    """The upper left part [B, height, width] of a plasma of `size`, without making the rest of its fine grids.

    The coarse grids are made in full, so that the smallest and the largest value are those of the whole plasma, up
    to the small shocks of the fine grids. Of the fine grids only the window is made, with one more cell before it
    and two after it.
    """
    steps = [size // FULL_CELLS // 2**k for k in range((size // FULL_CELLS).bit_length())]
    grids = [(-(-height // step) + 3, -(-width // step) + 3) for step in steps]
    coarse = FULL_CELLS**2 - 1
    drawn = uniforms((batch, coarse + sum(3 * rows * columns for rows, columns in grids[:-1])), dose) * 2 - 1
    clouds, wibble = _plasma(drawn[:, :coarse], size=FULL_CELLS, decay=decay)
    least, greatest = clouds.min(axis=(1, 2)), clouds.max(axis=(1, 2))
    rows, columns = (np.arange(-1, count - 1) % FULL_CELLS for count in grids[0])
    clouds = clouds[:, rows[:, None], columns]
    used = coarse
    for grid, (num_rows, num_columns) in itertools.pairwise(grids):
        count = 3 * math.prod(grid)
        shock = drawn[:, used : used + count].reshape(batch, 3, *grid) * np.float32(wibble**2)
        clouds = _refined(clouds, shock)[:, :num_rows, :num_columns]
        wibble, used = wibble / decay, used + count
    window: Levels = clouds[:, 1 : height + 1, 1 : width + 1].copy()
    least = np.minimum(least, window.min(axis=(1, 2)))[:, None, None]
    greatest = np.maximum(greatest, window.max(axis=(1, 2)))[:, None, None]
    window -= least
    window /= greatest - least
    return window


def _refined(corner: Levels, shock: Levels) -> Levels:
    """Refine a window [B, M, N] of a grid with shocks [B, 3, M, N] to half the step, [B, 2M - 3, 2N - 3].

    The outermost values, which lack a neighbour, are left out; the first value is the centre of the first square.
    """
    batch, rows, columns = corner.shape
    fine: Levels = np.empty((batch, 2 * rows - 3, 2 * columns - 3), np.float32)
    east = corner[:, :, :-1] + corner[:, :, 1:]
    south = corner[:, :-1] + corner[:, 1:]
    centre = (east[:, :-1] + east[:, 1:]) / 4 + shock[:, 0, :-1, :-1]
    fine[:, ::2, ::2] = centre
    fine[:, 1::2, 1::2] = corner[:, 1:-1, 1:-1]
    fine[:, 1::2, ::2] = (east[:, 1:-1] + centre[:, :-1] + centre[:, 1:]) / 4 + shock[:, 1, 1:-1, :-1]
    fine[:, ::2, 1::2] = (south[:, :, 1:-1] + centre[:, :, :-1] + centre[:, :, 1:]) / 4 + shock[
        :, 2, :-1, 1:-1
    ]
    return fine

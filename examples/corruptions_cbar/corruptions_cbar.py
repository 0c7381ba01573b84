"""Four corruptions of the kind of CIFAR-10-C-bar and ImageNet-C-bar, as plugins for MetaRepair.

    plasma_noise          noise     adds a coloured plasma: random at all scales, the coarse ones strongest
    checkerboard_cutout   occlusion covers squares in every second field of a chessboard with grey
    sparkles              light     adds four-pointed glints of light
    inverse_sparkles      light     the same glints of shadow

Source: Mintun, Kirillov & Xie, "On Interaction Between Augmentations and Corruptions in Natural Corruption Robustness",
NeurIPS 2021, which names these transforms. Written anew; the formulas and constants are our own.

All arithmetic on pixels is +, -, ·, / and comparisons, which round alike on every processor.
"""

# B images in a batch, H W C pixels, N glints of an image, M + 1 points on a side of a grid

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tasks.corruptions import CorruptionPlugin, Dose

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
GREY = 128
OCTAVES = (
    2,
    4,
    8,
    16,
    32,
    64,
    128,
)  # cells on a side of the plasma's grids; those finer than the pixels are left out


def plasma_noise(images_BHWC: Pixels, dose: Dose) -> Floats:
    """x + 255 · c0 · plasma, with a plasma of -1..1 for each channel."""
    strength, decay = dose.constants
    changed_BHWC = plasma(images_BHWC.shape, dose, decay=decay)
    changed_BHWC *= np.float32(255 * strength)
    changed_BHWC += images_BHWC
    return changed_BHWC


def plasma(shape: tuple[int, ...], dose: Dose, *, decay: float) -> Floats:
    """A sum of random grids [B, H, W, C], the n-th with the weight decay^n, scaled to a largest value of 1."""
    batch, height, width, channels = shape
    cells = [number for number in OCTAVES if number <= max(height, width)]
    sizes = [(number + 1) ** 2 * channels for number in cells]
    drawn: Floats = np.empty((batch, sum(sizes)), np.float32)
    for row, rng in zip(drawn, dose.rngs, strict=True):
        rng.random(out=row, dtype=np.float32)
    drawn *= 2
    drawn -= 1
    total_BHWC: Floats = np.zeros(shape, np.float32)
    used = 0
    for octave, (number, size) in enumerate(zip(cells, sizes, strict=True)):
        grid = drawn[:, used : used + size].reshape(batch, number + 1, number + 1, channels)
        total_BHWC += np.float32(decay**octave) * enlarged(grid, height=height, width=width)
        used += size
    total_BHWC /= np.abs(total_BHWC).max(axis=(1, 2, 3), keepdims=True, initial=np.float32(1e-6))
    return total_BHWC


def enlarged(grid: Floats, *, height: int, width: int) -> Floats:
    """A grid [B, M + 1, M + 1, C] interpolated linearly to [B, H, W, C]."""
    rows, row_parts = places(height, grid.shape[1] - 1)
    columns, column_parts = places(width, grid.shape[2] - 1)
    down = row_parts[:, None, None]
    tall = grid[:, rows] * (1 - down) + grid[:, rows + 1] * down
    right = column_parts[:, None]
    wide: Floats = tall[:, :, columns] * (1 - right) + tall[:, :, columns + 1] * right
    return wide


def places(size: int, cells: int) -> tuple[NDArray[np.int64], Floats]:
    """For each of `size` pixels, the grid point before its centre and its way to the next one in 0..1."""
    position = (np.arange(size) + 0.5) * cells / size
    before = position.astype(np.int64)
    return before, (position - before).astype(np.float32)


def checkerboard_cutout(images_BHWC: Pixels, dose: Dose) -> Pixels:
    """Cover a square of c1 of the side of every second field with grey; fields have c0 px and a random offset."""
    field, part = dose.constants
    batch, height, width, _ = images_BHWC.shape
    side = field * min(height, width) / dose.native_size
    offsets_B2 = 2 * np.array([rng.random(2) for rng in dose.rngs]).reshape(batch, 2)  # in fields
    rows_BH = offsets_B2[:, :1] + (np.arange(height) + 0.5) / side
    columns_BW = offsets_B2[:, 1:] + (np.arange(width) + 0.5) / side
    odd_BHW = (np.floor(rows_BH)[:, :, None] + np.floor(columns_BW)[:, None]) % 2 == 1
    inside_BHW = covered(rows_BH, part)[:, :, None] & covered(columns_BW, part)[:, None]
    return np.where((odd_BHW & inside_BHW)[..., None], np.uint8(GREY), images_BHWC)


def covered(position: NDArray[np.float64], part: float) -> NDArray[np.bool_]:
    """Whether a position, in fields, lies in the middle `part` of its field."""
    return np.abs(position - np.floor(position) - 0.5) <= part / 2


def sparkles(images_BHWC: Pixels, dose: Dose) -> Floats:
    """x + light · (255 - x), with the light of glints in 0..1."""
    light_BHW1 = glints(images_BHWC.shape, dose)[..., None]
    return images_BHWC + light_BHW1 * (np.float32(255) - images_BHWC)


def inverse_sparkles(images_BHWC: Pixels, dose: Dose) -> Floats:
    """x · (1 - shadow), with a shadow that falls as the light of `sparkles`."""
    return images_BHWC * (1 - glints(images_BHWC.shape, dose))[..., None]


def glints(shape: tuple[int, ...], dose: Dose) -> Floats:
    """The light [B, H, W] in 0..1 of c0 glints, with cores of c1 px and the brightness c2.

    A glint has a random place and angle, and half to all of the full size. Where glints overlap, each lights its share
    of the darkness that the others leave.
    """
    count, radius, brightness = round(dose.constants[0]), dose.constants[1], dose.constants[2]
    batch, height, width, _ = shape
    drawn_B4N = np.array([rng.random((4, count)) for rng in dose.rngs]).reshape(batch, 4, count)
    radius_BN = radius * min(height, width) / dose.native_size * (0.5 + 0.5 * drawn_B4N[:, 2])
    angle_BN = np.pi / 2 * drawn_B4N[:, 3]  # a quarter of a turn maps the four rays onto themselves
    across_BN, along_BN = np.cos(angle_BN) / radius_BN, np.sin(angle_BN) / radius_BN
    dark_BHW: Floats = np.ones((batch, height, width), np.float32)
    for n in range(count):
        y_BH1 = (np.arange(height) + 0.5 - height * drawn_B4N[:, 0, n, None]).astype(np.float32)[:, :, None]
        x_B1W = (np.arange(width) + 0.5 - width * drawn_B4N[:, 1, n, None]).astype(np.float32)[:, None]
        across_B11, along_B11 = (v[:, n, None, None].astype(np.float32) for v in (across_BN, along_BN))
        u_BHW = x_B1W * across_B11 + y_BH1 * along_B11
        v_BHW = y_BH1 * across_B11 - x_B1W * along_B11
        dark_BHW *= 1 - np.float32(brightness) * glint(u_BHW * u_BHW, v_BHW * v_BHW)
    return 1 - dark_BHW


def glint(u2: Floats, v2: Floats) -> Floats:
    """The light in 0..1 at the squared distances u², v² (in core radii) from the two axes of a glint."""
    core = 1 / (1 + u2 + v2)
    rays = 1 / ((1 + u2 / 16) * (1 + 4 * v2)) + 1 / ((1 + v2 / 16) * (1 + 4 * u2))
    return core * core + (1 - core * core) * rays * np.float32(0.5)


# Constants of severities 1 to 5. Lengths are in pixels of the table's images (32, 64 and 224 px), and grow with others.
PLASMA_NOISE = CorruptionPlugin(
    name="plasma_noise",
    category="noise",
    constants={  # strength, decay
        "cifar": ((0.10, 0.7), (0.15, 0.7), (0.21, 0.7), (0.28, 0.7), (0.36, 0.7)),
        "tinyimagenet": ((0.11, 0.7), (0.17, 0.7), (0.24, 0.7), (0.32, 0.7), (0.41, 0.7)),
        "imagenet": ((0.14, 0.7), (0.21, 0.7), (0.30, 0.7), (0.40, 0.7), (0.52, 0.7)),
    },
    apply=plasma_noise,
)
CHECKERBOARD_CUTOUT = CorruptionPlugin(
    name="checkerboard_cutout",
    category="occlusion",
    constants={  # side of a field in px, part of it that is covered
        "cifar": ((4, 0.45), (4, 0.6), (4, 0.75), (4, 0.88), (4, 1)),
        "tinyimagenet": ((7, 0.45), (7, 0.6), (7, 0.75), (7, 0.88), (7, 1)),
        "imagenet": ((22, 0.45), (22, 0.6), (22, 0.75), (22, 0.88), (22, 1)),
    },
    apply=checkerboard_cutout,
)
GLINTS = {  # number, radius of a core in px, brightness
    "cifar": ((2, 1.2, 0.7), (3, 1.4, 0.8), (4, 1.6, 0.9), (6, 1.7, 1), (8, 1.9, 1)),
    "tinyimagenet": ((3, 2.0, 0.7), (4, 2.3, 0.8), (5, 2.7, 0.9), (7, 3.0, 1), (10, 3.4, 1)),
    "imagenet": ((4, 5.5, 0.7), (5, 6.5, 0.8), (7, 7.5, 0.9), (10, 8.5, 1), (14, 9.5, 1)),
}
SPARKLES = CorruptionPlugin(name="sparkles", category="light", constants=GLINTS, apply=sparkles)
INVERSE_SPARKLES = CorruptionPlugin(
    name="inverse_sparkles", category="light", constants=GLINTS, apply=inverse_sparkles
)

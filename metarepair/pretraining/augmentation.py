"""Augment training images by keyed random draws, a whole batch at a time.

An image's draws are keyed by (seed, epoch, image id), so they do not depend on batches, workers or restarts.
Source: Cubuk et al. 2020 (RandAugment, by the kernels and ranges of torchvision), Zhang et al. 2018 (Mixup), Yun et
al. 2019 (CutMix), Krizhevsky 2009 (flips and shifts).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V

from metarepair.config.pretraining import MAGNITUDES, PretrainConfig
from tasks.keys import iter_keyed_generators, keyed_generator

# B images, C channels, H W pixels, O operations of RandAugment

Operation = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random draws for each image, from 0 to below 1."""

    flip_B: NDArray[np.float64]
    shift_B2: NDArray[np.float64]
    operations_BO: NDArray[np.float64]


def sample_draws(image_ids: Iterable[int], *, seed: int, epoch: int, operations: int) -> Draws:
    """Sample the draws of the given images in one epoch."""
    generators = iter_keyed_generators("pretrain-augment", seed, epoch, last=image_ids)
    drawn = np.stack([generator.random(3 + operations) for generator in generators])
    return Draws(flip_B=drawn[:, 0], shift_B2=drawn[:, 1:3], operations_BO=drawn[:, 3:])


def flipped_and_shifted(images_BCHW: Tensor, draws: Draws, *, flip: bool, shift: int) -> Tensor:
    """Flip half of the images left to right, and shift each by up to `shift` pixels; edges are reflected."""
    batch, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    padded = F.pad(images_BCHW, (shift,) * 4, mode="reflect") if shift else images_BCHW
    dy, dx = torch.from_numpy((draws.shift_B2 * (2 * shift + 1)).astype(np.int64)).to(device).T
    columns = torch.arange(width, device=device).expand(batch, width)
    if flip:
        flipped = torch.from_numpy(draws.flip_B < 0.5).to(device)[:, None]
        columns = torch.where(flipped, width - 1 - columns, columns)
    rows = torch.arange(height, device=device)[None] + dy[:, None]
    index = torch.arange(batch, device=device)[:, None, None]
    columns = columns + dx[:, None]
    shifted = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
    return shifted.permute(0, 3, 1, 2)


def rand_augment(images_BCHW_u8: Tensor, draws: Draws, *, magnitude: int) -> Tensor:
    """Apply RandAugment: one operation per draw to each image, at `magnitude`, 0 to 30.

    Images that drew the same operation and sign are processed together.
    """
    images_BCHW_u8 = images_BCHW_u8.clone()
    strength = magnitude / (MAGNITUDES - 1)
    for draw_B in draws.operations_BO.T:
        choice_B = (draw_B * 2 * len(OPERATIONS)).astype(np.int64)
        for choice in np.unique(choice_B):
            operation = tuple(OPERATIONS.values())[choice // 2]
            rows = torch.from_numpy(np.flatnonzero(choice_B == choice)).to(images_BCHW_u8.device)
            images_BCHW_u8[rows] = operation(images_BCHW_u8[rows], -strength if choice % 2 else strength)
    return images_BCHW_u8


def _affine(
    images: Tensor, *, angle: float = 0.0, x: float = 0.0, y: float = 0.0, shear: list[float]
) -> Tensor:
    center = [0.0, 0.0] if any(shear) else None
    moved: Tensor = V.affine(
        images, angle=angle, translate=[int(x), int(y)], scale=1.0, shear=shear, center=center
    )
    return moved


def _degrees(slope: float) -> float:
    return math.degrees(math.atan(slope))


# Ranges of torchvision.transforms.v2.RandAugment. `s` is the signed strength, from -1 to 1; operations without a sign
# use its absolute value. As in torchvision, shears are about the corner.
OPERATIONS: dict[str, Operation] = {
    "Identity": lambda x, _: x,
    "ShearX": lambda x, s: _affine(x, shear=[_degrees(0.3 * s), 0.0]),
    "ShearY": lambda x, s: _affine(x, shear=[0.0, _degrees(0.3 * s)]),
    "TranslateX": lambda x, s: _affine(x, x=150 / 331 * x.shape[-1] * s, shear=[0.0, 0.0]),
    "TranslateY": lambda x, s: _affine(x, y=150 / 331 * x.shape[-2] * s, shear=[0.0, 0.0]),
    "Rotate": lambda x, s: V.rotate(x, 30 * s),
    "Brightness": lambda x, s: V.adjust_brightness(x, 1 + 0.9 * s),
    "Color": lambda x, s: V.adjust_saturation(x, 1 + 0.9 * s),
    "Contrast": lambda x, s: V.adjust_contrast(x, 1 + 0.9 * s),
    "Sharpness": lambda x, s: V.adjust_sharpness(x, 1 + 0.9 * s),
    "Posterize": lambda x, s: V.posterize(x, 8 - round(4 * abs(s))),
    "Solarize": lambda x, s: V.solarize(x, 255 * (1 - abs(s))),
    "AutoContrast": lambda x, _: V.autocontrast(x),
    "Equalize": lambda x, _: V.equalize(x),
}


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How the images of a step are mixed with their partners.

    weight: share of an image's own label that remains, 0 to 1. box: the rows and columns (y1, y2, x1, x2) that come
    from the partner (CutMix), None for Mixup.
    """

    weight: float
    box: tuple[int, int, int, int] | None = None


def sample_mixing(
    config: PretrainConfig, height: int, width: int, *, seed: int, epoch: int, step: int
) -> Mixing | None:
    """Sample Mixup's or CutMix's draw for a step; None if neither is on."""
    if not config.mixup and not config.cutmix:
        return None
    generator = keyed_generator("pretrain-mix", seed, epoch, step)
    cut = config.cutmix > 0 and (config.mixup == 0 or generator.random() < 0.5)
    alpha = config.cutmix if cut else config.mixup
    weight = float(generator.beta(alpha, alpha))
    if not cut:
        return Mixing(weight=weight)
    x, y = int(generator.integers(width)), int(generator.integers(height))
    half = 0.5 * math.sqrt(1 - weight)
    dx, dy = int(half * width), int(half * height)
    box = (max(y - dy, 0), min(y + dy, height), max(x - dx, 0), min(x + dx, width))
    area = (box[1] - box[0]) * (box[3] - box[2])
    return Mixing(weight=1 - area / (width * height), box=box)


def mixed(images_BCHW: Tensor, partners_BCHW: Tensor, mixing: Mixing) -> Tensor:
    """Mix each image with its partner."""
    if mixing.box is None:
        return partners_BCHW.lerp(images_BCHW, mixing.weight)
    y1, y2, x1, x2 = mixing.box
    out_BCHW = images_BCHW.clone()
    out_BCHW[:, :, y1:y2, x1:x2] = partners_BCHW[:, :, y1:y2, x1:x2]
    return out_BCHW

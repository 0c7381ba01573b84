"""Resize images to a network's input size, and find the mean and standard deviation that normalise them."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from tasks.datasets import DatasetInfo
from tasks.errors import ConfigError

# B images, C H W pixels
Normalisation = Literal["dataset", "checkpoint"]
Colour = tuple[float, float, float]


def resized(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Return float images at `size` (height, width): bilinear, antialiased if a side shrinks; unchanged if they fit."""
    if x_BCHW.shape[2:] == size:
        return x_BCHW
    shrinks = x_BCHW.shape[2] > size[0] or x_BCHW.shape[3] > size[1]
    return F.interpolate(x_BCHW, size, mode="bilinear", antialias=shrinks)


def mean_and_std(
    module: nn.Module, name: str, info: DatasetInfo, normalisation: Normalisation
) -> tuple[Colour, Colour]:
    """Return mean and standard deviation of pixels in [0, 1]: the data set's, or those of timm's pretrained_cfg.

    Raises ConfigError if those of the checkpoint are asked for and `module` states none.
    """
    if normalisation == "dataset":
        return info.mean, info.std
    stated = getattr(module, "pretrained_cfg", None) or {}
    mean, std = (tuple(float(value) for value in stated.get(key) or ()) for key in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3:
        raise ConfigError(
            f"model.normalisation=checkpoint, but {name} states no mean and std of three channels "
            "(timm's pretrained_cfg). Set model.normalisation to dataset."
        )
    return mean, std

"""uint8 images in, the 2,048 pool3 features of the published FID Inception out.

The network is TensorFlow's 2015 Inception graph (1,008 outputs) as every FID since Heusel et al. 2017 uses
it: TensorFlow 1's bilinear resize to 299, (x − 128)/128, average pools that do not count the padding, and
a max pool in the last block. Modules and parameters bear the names of the published weights, so that the
two files that are the same under different names load as they are:

    pt_inception-2015-12-05-6726825d.pth        mseitzer/pytorch-fid, release fid_weights
    weights-inception-2015-12-05-6726825d.pth   toshas/torch-fidelity, release v0.2.0

Legend: B images, C channels, H W pixels. Source: Szegedy et al. 2015, "Rethinking the Inception
Architecture for Computer Vision"; the weights are TensorFlow's (Apache-2.0), converted by those projects.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tasks.errors import DataError, WeightsError

FEATURES = 2048
INPUT_SIZE = 299
HASH_PREFIX = "6726825d"  # of the SHA-256 of both published files
URLS = (
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-{HASH_PREFIX}.pth",
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-{HASH_PREFIX}.pth",
)
FILE_NAMES = tuple(
    f"{stem}-2015-12-05-{HASH_PREFIX}{suffix}"
    for suffix in (".pth", ".safetensors")
    for stem in ("pt_inception", "weights-inception")
)


class Conv(NamedTuple):
    """One convolution of a block. Stride 1 keeps the size, stride 2 goes without padding."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


# A branch is a sequence of steps, a step the convolutions that share an input and are concatenated.
Branch = tuple[tuple[Conv, ...], ...]
Pool = Literal["average", "max", "max_stride_2"]


class ConvBlock(nn.Module):
    """Convolution, batch normalisation (epsilon of the TensorFlow graph), ReLU."""

    def __init__(self, inputs: int, spec: Conv, padding: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, spec.channels, spec.kernel, spec.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(spec.channels, eps=1e-3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H', W']."""
        return F.relu(self.bn(self.conv(x_BCHW)))


class Mixed(nn.Module):
    """Parallel branches and a pool, concatenated; `pool_channels` = 0 leaves the pool unprojected."""

    def __init__(self, inputs: int, branches: tuple[Branch, ...], pool: Pool, pool_channels: int) -> None:
        super().__init__()
        self.branches, self.pool = branches, pool
        for branch in branches:
            channels = inputs
            for step in branch:
                for spec in step:
                    same = (spec.kernel[0] // 2, spec.kernel[1] // 2)
                    self.add_module(spec.name, ConvBlock(channels, spec, same if spec.stride == 1 else (0, 0)))
                channels = sum(spec.channels for spec in step)
        if pool_channels:
            self.branch_pool = ConvBlock(inputs, Conv("branch_pool", pool_channels), (0, 0))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H', W']."""
        outputs = []
        for branch in self.branches:
            h_BCHW = x_BCHW
            for step in branch:
                h_BCHW = torch.cat([self.get_submodule(spec.name)(h_BCHW) for spec in step], dim=1)
            outputs.append(h_BCHW)
        pooled_BCHW = self._pooled(x_BCHW)
        outputs.append(self.branch_pool(pooled_BCHW) if hasattr(self, "branch_pool") else pooled_BCHW)
        return torch.cat(outputs, dim=1)

    def _pooled(self, x_BCHW: Tensor) -> Tensor:
        if self.pool == "average":
            return F.avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False)
        if self.pool == "max":
            return F.max_pool2d(x_BCHW, 3, stride=1, padding=1)
        return F.max_pool2d(x_BCHW, 3, stride=2)


def _chain(*specs: Conv) -> Branch:
    return tuple((spec,) for spec in specs)


def _mixed_35(inputs: int, pool_channels: int) -> Mixed:
    """Blocks of 35 × 35 pixels (5b, 5c, 5d)."""
    branches = (
        _chain(Conv("branch1x1", 64)),
        _chain(Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        _chain(
            Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))
        ),
    )
    return Mixed(inputs, branches, "average", pool_channels)


def _mixed_35_to_17(inputs: int) -> Mixed:
    """Block 6a."""
    branches = (
        _chain(Conv("branch3x3", 384, (3, 3), 2)),
        _chain(
            Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), 2)
        ),
    )
    return Mixed(inputs, branches, "max_stride_2", 0)


def _mixed_17(inputs: int, width: int) -> Mixed:
    """Blocks of 17 × 17 pixels (6b to 6e): 7 × 7 convolutions in two parts."""
    wide, tall = (1, 7), (7, 1)
    branches = (
        _chain(Conv("branch1x1", 192)),
        _chain(Conv("branch7x7_1", width), Conv("branch7x7_2", width, wide), Conv("branch7x7_3", 192, tall)),
        _chain(
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, tall),
            Conv("branch7x7dbl_3", width, wide),
            Conv("branch7x7dbl_4", width, tall),
            Conv("branch7x7dbl_5", 192, wide),
        ),
    )
    return Mixed(inputs, branches, "average", 192)


def _mixed_17_to_8(inputs: int) -> Mixed:
    """Block 7a."""
    branches = (
        _chain(Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)),
        _chain(
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2),
        ),
    )
    return Mixed(inputs, branches, "max_stride_2", 0)


def _mixed_8(inputs: int, pool: Pool) -> Mixed:
    """Blocks of 8 × 8 pixels (7b, 7c), whose branches fork at the end."""

    def fork(a: str, b: str) -> tuple[Conv, ...]:
        return Conv(a, 384, (1, 3)), Conv(b, 384, (3, 1))

    branches: tuple[Branch, ...] = (
        _chain(Conv("branch1x1", 320)),
        ((Conv("branch3x3_1", 384),), fork("branch3x3_2a", "branch3x3_2b")),
        (
            (Conv("branch3x3dbl_1", 448),),
            (Conv("branch3x3dbl_2", 384, (3, 3)),),
            fork("branch3x3dbl_3a", "branch3x3dbl_3b"),
        ),
    )
    return Mixed(inputs, branches, pool, 192)


class FidInception(nn.Module):
    """uint8 [B, 3, H, W] of any size to float32 features [B, 2048]. Built by `build_fid_inception`."""

    def __init__(self) -> None:
        super().__init__()
        three = (3, 3)
        self.Conv2d_1a_3x3 = ConvBlock(3, Conv("", 32, three, 2), (0, 0))
        self.Conv2d_2a_3x3 = ConvBlock(32, Conv("", 32, three), (0, 0))
        self.Conv2d_2b_3x3 = ConvBlock(32, Conv("", 64, three), (1, 1))
        self.Conv2d_3b_1x1 = ConvBlock(64, Conv("", 80), (0, 0))
        self.Conv2d_4a_3x3 = ConvBlock(80, Conv("", 192, three), (0, 0))
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = (
            _mixed_35(inputs, pool) for inputs, pool in ((192, 32), (256, 64), (288, 64))
        )
        self.Mixed_6a = _mixed_35_to_17(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (
            _mixed_17(768, width) for width in (128, 160, 160, 192)
        )
        self.Mixed_7a = _mixed_17_to_8(768)
        self.Mixed_7b = _mixed_8(1280, "average")
        self.Mixed_7c = _mixed_8(2048, "max")
        self.fc = nn.Linear(FEATURES, 1008)  # unused here; the published files hold it

    def forward(self, images_BCHW_u8: Tensor) -> Tensor:
        """Features [B, 2048], float32; DataError for anything but uint8 images of three channels."""
        if images_BCHW_u8.dtype != torch.uint8 or images_BCHW_u8.ndim != 4 or images_BCHW_u8.shape[1] != 3:
            raise DataError(
                f"the FID Inception takes uint8 images [B, 3, H, W], not {images_BCHW_u8.dtype} "
                f"{list(images_BCHW_u8.shape)}; convert grey images to three equal channels first"
            )
        h_BCHW = (resize_like_tensorflow_1(images_BCHW_u8.float(), INPUT_SIZE) - 128) / 128
        h_BCHW = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(h_BCHW)))
        h_BCHW = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(h_BCHW, 3, stride=2)))
        h_BCHW = F.max_pool2d(h_BCHW, 3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                h_BCHW = block(h_BCHW)
        return h_BCHW.mean(dim=(2, 3))


def resize_like_tensorflow_1(x_BCHW: Tensor, size: int) -> Tensor:
    """Bilinear resize to size × size at source = target · in/out: no half pixel, no antialiasing.

    Source: TensorFlow 1 `resize_bilinear` with align_corners=False. Columns first, then rows, in float32, as
    there.
    """
    return _resize_axis(_resize_axis(x_BCHW, 3, size), 2, size)


def _resize_axis(x: Tensor, axis: int, size: int) -> Tensor:
    last = x.shape[axis] - 1
    position = torch.arange(size, device=x.device, dtype=torch.float32)
    position = position * torch.tensor((last + 1) / size, dtype=torch.float32)
    below = position.long()
    share = (position - below).view([-1 if a == axis else 1 for a in range(x.ndim)])
    low = x.index_select(axis, below)
    return low + (x.index_select(axis, (below + 1).clamp_max(last)) - low) * share


def build_fid_inception() -> nn.Module:
    """The network with random weights, in evaluation mode, without gradients: [B, 3, H, W] uint8 to [B, 2048]."""
    return FidInception().requires_grad_(False).eval()

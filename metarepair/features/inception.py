"""Computes the 2,048 pool3 features of the published FID Inception from uint8 images.

The network is TensorFlow's 2015 Inception graph (1,008 outputs), as every FID since Heusel et al. 2017 uses
it: TensorFlow 1's bilinear resize to 299, (x − 128)/128, average pools that do not count the padding, and
a max pool in the last block. Modules and parameters have the names of the published weights, so both
published files load unchanged.

Legend: B images, C channels, H W pixels. Source: Szegedy et al. 2015, "Rethinking the Inception Architecture
for Computer Vision"; the weights are TensorFlow's (Apache-2.0), converted by pytorch-fid and torch-fidelity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarepair.features.folding import fold_batch_norms
from metarepair.features.inception_weights import obtain_fid_inception
from metarepair.models.fit import fit
from metarepair.models.weights_file import read_weights
from tasks.errors import DataError

FEATURES = 2048
INPUT_SIZE = 299

# Blocks by the size of their maps. A line is a branch, and a word is a convolution: name:channels@kernel/stride.
# In a|b, both take the same input and their outputs are concatenated. W is a width that differs between blocks.
MAPS_35 = """
    branch1x1:64
    branch5x5_1:48 branch5x5_2:64@5x5
    branch3x3dbl_1:64 branch3x3dbl_2:96@3x3 branch3x3dbl_3:96@3x3
"""
MAPS_35_TO_17 = """
    branch3x3:384@3x3/2
    branch3x3dbl_1:64 branch3x3dbl_2:96@3x3 branch3x3dbl_3:96@3x3/2
"""
MAPS_17 = """
    branch1x1:192
    branch7x7_1:W branch7x7_2:W@1x7 branch7x7_3:192@7x1
    branch7x7dbl_1:W branch7x7dbl_2:W@7x1 branch7x7dbl_3:W@1x7 branch7x7dbl_4:W@7x1 branch7x7dbl_5:192@1x7
"""
MAPS_17_TO_8 = """
    branch3x3_1:192 branch3x3_2:320@3x3/2
    branch7x7x3_1:192 branch7x7x3_2:192@1x7 branch7x7x3_3:192@7x1 branch7x7x3_4:192@3x3/2
"""
MAPS_8 = """
    branch1x1:320
    branch3x3_1:384 branch3x3_2a:384@1x3|branch3x3_2b:384@3x1
    branch3x3dbl_1:448 branch3x3dbl_2:384@3x3 branch3x3dbl_3a:384@1x3|branch3x3dbl_3b:384@3x1
"""

Pool = Literal["average", "max", "max_stride_2"]


class Conv(NamedTuple):
    """One convolution of a block. Stride 1 keeps the size of the map; stride 2 has no padding."""

    name: str
    channels: int
    kernel: tuple[int, int]
    stride: int


def _parse(word: str) -> Conv:
    word, _, stride = word.partition("/")
    word, _, kernel = word.partition("@")
    name, channels = word.split(":")
    height, width = map(int, (kernel or "1x1").split("x"))
    return Conv(name, int(channels), (height, width), int(stride or 1))


class ConvBlock(nn.Module):
    """Convolution, batch normalisation (with the epsilon of the TensorFlow graph), ReLU."""

    def __init__(self, inputs: int, channels: int, kernel: tuple[int, int], stride: int, same: bool) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if same else (0, 0)
        self.conv = nn.Conv2d(inputs, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H', W']."""
        return F.relu(self.bn(self.conv(x_BCHW)), inplace=True)


class Mixed(nn.Module):
    """Parallel branches and a pool, concatenated; `pool_channels` = 0 leaves the pool unprojected."""

    def __init__(self, inputs: int, layout: str, pool: Pool, pool_channels: int = 0) -> None:
        super().__init__()
        self.pool = pool
        self.branches = [
            [[_parse(word) for word in step.split("|")] for step in line.split()]
            for line in layout.strip().splitlines()
        ]
        for branch in self.branches:
            channels = inputs
            for step in branch:
                for name, outputs, kernel, stride in step:
                    self.add_module(name, ConvBlock(channels, outputs, kernel, stride, same=stride == 1))
                channels = sum(conv.channels for conv in step)
        self.branch_pool = ConvBlock(inputs, pool_channels, (1, 1), 1, same=True) if pool_channels else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H', W']."""
        pooled_BCHW = self._pooled(x_BCHW)
        last_BCHW = pooled_BCHW if self.branch_pool is None else self.branch_pool(pooled_BCHW)
        return torch.cat([*(self._run(branch, x_BCHW) for branch in self.branches), last_BCHW], dim=1)

    def _run(self, branch: list[list[Conv]], h_BCHW: Tensor) -> Tensor:
        for step in branch:
            h_BCHW = torch.cat([self.get_submodule(conv.name)(h_BCHW) for conv in step], dim=1)
        return h_BCHW

    def _pooled(self, x_BCHW: Tensor) -> Tensor:
        if self.pool == "average":
            return F.avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False)
        if self.pool == "max":
            return F.max_pool2d(x_BCHW, 3, stride=1, padding=1)
        return F.max_pool2d(x_BCHW, 3, stride=2)


class FidInception(nn.Module):
    """uint8 [B, 3, H, W] of any size to float32 features [B, 2048]. Built by `build_fid_inception`."""

    size = (INPUT_SIZE, INPUT_SIZE)

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBlock(3, 32, (3, 3), 2, same=False)
        self.Conv2d_2a_3x3 = ConvBlock(32, 32, (3, 3), 1, same=False)
        self.Conv2d_2b_3x3 = ConvBlock(32, 64, (3, 3), 1, same=True)
        self.Conv2d_3b_1x1 = ConvBlock(64, 80, (1, 1), 1, same=True)
        self.Conv2d_4a_3x3 = ConvBlock(80, 192, (3, 3), 1, same=False)
        self.Mixed_5b = Mixed(192, MAPS_35, "average", 32)
        self.Mixed_5c = Mixed(256, MAPS_35, "average", 64)
        self.Mixed_5d = Mixed(288, MAPS_35, "average", 64)
        self.Mixed_6a = Mixed(288, MAPS_35_TO_17, "max_stride_2")
        self.Mixed_6b = Mixed(768, MAPS_17.replace("W", "128"), "average", 192)
        self.Mixed_6c = Mixed(768, MAPS_17.replace("W", "160"), "average", 192)
        self.Mixed_6d = Mixed(768, MAPS_17.replace("W", "160"), "average", 192)
        self.Mixed_6e = Mixed(768, MAPS_17.replace("W", "192"), "average", 192)
        self.Mixed_7a = Mixed(768, MAPS_17_TO_8, "max_stride_2")
        self.Mixed_7b = Mixed(1280, MAPS_8, "average", 192)
        self.Mixed_7c = Mixed(2048, MAPS_8, "max", 192)  # a max pool, as in the published graph
        self.fc = nn.Linear(FEATURES, 1008)  # unused here, but in the published files

    def forward(self, images_BCHW_u8: Tensor) -> Tensor:
        """Features [B, 2048], float32. Raises DataError for anything but uint8 images of three channels."""
        if images_BCHW_u8.dtype != torch.uint8 or images_BCHW_u8.ndim != 4 or images_BCHW_u8.shape[1] != 3:
            raise DataError(
                f"the FID Inception takes uint8 images [B, 3, H, W], not {images_BCHW_u8.dtype} "
                f"{list(images_BCHW_u8.shape)}; give grey images three equal channels first"
            )
        h_BCHW = (resize_like_tensorflow_1(images_BCHW_u8.float(), INPUT_SIZE) - 128) / 128
        h_BCHW = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(h_BCHW)))
        h_BCHW = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(h_BCHW, 3, stride=2)))
        h_BCHW = F.max_pool2d(h_BCHW, 3, stride=2)
        for block in self.children():  # in the order of definition
            h_BCHW = block(h_BCHW) if isinstance(block, Mixed) else h_BCHW
        return h_BCHW.mean(dim=(2, 3))


def resize_like_tensorflow_1(x_BCHW: Tensor, size: int) -> Tensor:
    """Bilinear resize to size × size, with source = target · in/out: no half-pixel offset, no antialiasing.

    Columns first, then rows, in float32. Source: TensorFlow 1 `resize_bilinear`, align_corners=False.
    """
    return _resize_axis(_resize_axis(x_BCHW, 3, size), 2, size)


def _resize_axis(x: Tensor, axis: int, size: int) -> Tensor:
    length = x.shape[axis]
    position = torch.arange(size, device=x.device, dtype=torch.float32)
    position = position * torch.tensor(length / size, device=x.device, dtype=torch.float32)
    below = position.long()
    share = (position - below).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    low = x.index_select(axis, below)
    return low + (x.index_select(axis, (below + 1).clamp_max(length - 1)) - low) * share


def build_fid_inception() -> nn.Module:
    """The network with random weights, for evaluation only: uint8 [B, 3, H, W] to float32 [B, 2048]."""
    return FidInception().requires_grad_(False).eval()


def fold_fid_inception(network: nn.Module) -> nn.Module:
    """Fold each batch norm into its convolution: the same features to rounding, in less time. Returns the network.

    The 1×1 convolutions of a block that share an input are not merged: merged, they took 0.95 to 1.02 of the time
    (four images, one thread), and all 1×1 convolutions take a quarter of the whole.
    """
    for module in network.modules():
        if isinstance(module, ConvBlock):
            fold_batch_norms(module)
    return network.to(memory_format=torch.channels_last)


def load_fid_inception(path: Path | None) -> nn.Module:
    """The network with published weights, for evaluation only.

    The file is `path`, or the one that `inception_weights.obtain_fid_inception` finds or downloads. Raises WeightsError
    if there is none, with the places searched and the remedy, or if it belongs to another network.
    """
    file = obtain_fid_inception(path)
    with torch.device("meta"):  # no random numbers are drawn for weights that the file replaces
        network = build_fid_inception()
    expected = network.state_dict()
    fitted = fit(
        network,
        read_weights(file),
        "the FID Inception with its 1,008 outputs",
        remedy="Give its published file.",
    )
    state = {k: v.to(expected[k].dtype) for k, v in fitted.tensors.items()}
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False).eval()

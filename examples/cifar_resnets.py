"""The CIFAR-10 residual networks of He et al. 2016 (Sec. 4.2), with parameter-free shortcuts (option A).

Three stages of n blocks at 16, 32 and 64 channels on images of 32, 16 and 8 pixels: 6n + 2 layers. The layers have the
same names as in a widely used set of checkpoints, so its files load without changes:

    metarepair run --config tune_configs/third_party_resnet20.yaml \\
        --model examples.cifar_resnets:resnet20 --weights resnet20-12fca82f.th

Written from the paper. The weights are not part of this project.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# B images, C H W pixels, K classes


class Block(nn.Module):
    """Two 3 × 3 convolutions plus the identity, which is subsampled and padded if the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.added = stride, out_channels - in_channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x_BCHW)))))
        identity = x_BCHW[:, :, :: self.stride, :: self.stride]
        before = self.added // 2  # zeros before and after the channels, as in the published nets
        return torch.relu(y_BCHW + F.pad(identity, (0, 0, 0, 0, before, self.added - before)))


class CifarResNet(nn.Module):
    """A stem, three stages, a global average and a linear head."""

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = torch.relu(self.bn1(self.conv1(x_BCHW)))
        h_BCHW = self.layer3(self.layer2(self.layer1(h_BCHW)))
        logits_BK: Tensor = self.linear(h_BCHW.mean(dim=(2, 3)))
        return logits_BK


def _stage(in_channels: int, out_channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    later = (Block(out_channels, out_channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(Block(in_channels, out_channels, stride), *later)


def resnet8(num_classes: int = 10) -> CifarResNet:
    """8 layers, 0.08 M parameters."""
    return CifarResNet(1, num_classes)


def resnet20(num_classes: int = 10) -> CifarResNet:
    """20 layers, 0.27 M parameters."""
    return CifarResNet(3, num_classes)


def resnet32(num_classes: int = 10) -> CifarResNet:
    """32 layers, 0.46 M parameters."""
    return CifarResNet(5, num_classes)


def resnet44(num_classes: int = 10) -> CifarResNet:
    """44 layers, 0.66 M parameters."""
    return CifarResNet(7, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """56 layers, 0.85 M parameters."""
    return CifarResNet(9, num_classes)


def resnet110(num_classes: int = 10) -> CifarResNet:
    """110 layers, 1.7 M parameters."""
    return CifarResNet(18, num_classes)

"""A small residual network for 32 px images, which the project ships pretrained.

Source: He et al. 2016 (basic block). Three stages of one block, and a 4 × 4 stem at stride 2. 309 k parameters and 12 M
multiply-adds at 32 px, so a second-order task takes about a second on one core. Registered with timm:
`timm.create_model("resnet8_cifar", num_classes=10)`.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn

from metarepair.models.own_weights import known_to_timm

# B images, C channels, H W pixels, D features, K classes


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut, which is a 1 × 1 convolution if the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = torch.relu(self.bn1(self.conv1(x_BCHW)))
        return torch.relu(self.bn2(self.conv2(y_BCHW)) + self.shortcut(x_BCHW))


class ResNet8(nn.Module):
    """Stem, three stages of one basic block, global average, linear head; with timm's interface."""

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        widths: tuple[int, int, int] = (32, 64, 128),
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = widths[-1]
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, widths[0], 4, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        channels = (widths[0], *widths)
        self.stages = nn.Sequential(
            *(BasicBlock(channels[i], channels[i + 1], stride=1 if i == 0 else 2) for i in range(3))
        )
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes)

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        features: Tensor = self.stages(self.stem(x_BCHW))
        return features

    def forward_head(self, x_BCHW: Tensor, pre_logits: bool = False) -> Tensor:
        x_BD = x_BCHW.mean(dim=(2, 3))
        logits: Tensor = x_BD if pre_logits else self.fc(x_BD)
        return logits

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x_BCHW))


@register_model  # type: ignore[untyped-decorator]
def resnet8_cifar(pretrained: bool = False, **kwargs: Any) -> ResNet8:
    """Build ResNet-8 for 32 px images. `pretrained`: see `metarepair.models.own_weights`."""
    known = {"num_classes", "in_chans", "widths"}
    module = ResNet8(**{k: v for k, v in kwargs.items() if k in known})
    known_to_timm(
        module, "resnet8_cifar", stem="stem.0", classifier="fc", pretrained=pretrained, arguments=kwargs
    )
    return module

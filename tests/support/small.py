"""Provide the small DNNs, failures and clean images that tests of repairs share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metarepair.data.clean_images import CleanImages
from metarepair.models.build import DeployedModel
from tasks.records import Failures, Ints


def deployed_of(module: nn.Module, *, num_classes: int = 3, name: str = "small") -> DeployedModel:
    """Return a module as the deployed DNN, with grey as the mean of its images."""
    return DeployedModel(name=name, module=module, num_classes=num_classes, mean=(0.5,) * 3, std=(0.25,) * 3)


def pixels(number: int, seed: int = 0, *, size: int = 8) -> Any:
    """Return images of random noise, [N, size, size, 3] uint8."""
    return np.random.default_rng(seed).integers(256, size=(number, size, size, 3), dtype=np.uint8)


def failures_of(
    labels_N: Ints,
    images_NHWC: Any,
    *,
    predicted_N: Ints | None = None,
    severities_N: Ints | None = None,
    corruption: str = "snow",
) -> Failures:
    """Return failures with image ids from 0; by default predicted as the next of three classes, at severity 1."""
    number = len(labels_N)
    return Failures(
        corruption=corruption,
        image_ids_N=np.arange(number),
        severities_N=np.ones(number, np.int64) if severities_N is None else severities_N,
        labels_N=labels_N,
        predicted_N=(labels_N + 1) % 3 if predicted_N is None else predicted_N,
        images_NHWC=images_NHWC,
    )


def bright_failures(number: int, seed: int, *, noise: int) -> Failures:
    """Return failures whose brightness gives their class out of three, so that they can be learned."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(3, size=number)
    light = labels[:, None, None, None] * 90 + generator.integers(noise, size=(number, 8, 8, 3))
    return failures_of(labels, light.astype(np.uint8), predicted_N=np.zeros(number, np.int64))


def clean_of(known: Failures) -> CleanImages:
    """Return the same images and labels as clean images."""
    return CleanImages(images_NHWC=known.images_NHWC, labels_N=known.labels_N)


def small_net(*, norm: bool = True, dropout: float | None = None, flat: bool = False) -> nn.Module:
    """Return a net for three classes of 8 × 8 pixels. flat: adds a batch norm with one value per channel."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norms, drops = [nn.BatchNorm2d(4)] if norm else [], [] if dropout is None else [nn.Dropout(dropout)]
        body = [nn.Conv2d(3, 4, 3), *norms, nn.ReLU(), *drops, nn.AvgPool2d(6), nn.Flatten()]
        return nn.Sequential(*body, *([nn.BatchNorm1d(4)] if flat else []), nn.Linear(4, 3)).eval()


class MeanNet(nn.Module):
    """A net for three classes and images of any size: a convolution, a global mean, a linear layer."""

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6) if norm else nn.Identity()
        self.last = nn.Linear(6, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x_BCHW)).relu().mean((2, 3)))  # type: ignore[no-any-return]


def mean_dnn(*, norm: bool = False) -> DeployedModel:
    """Return a deployed `MeanNet` in double precision."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return deployed_of(MeanNet(norm=norm).double().eval(), name="net")


class Small(nn.Module):
    """A net for ten classes: a convolution, a batch norm, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.norm(self.conv(x_BCHW))).mean(dim=(2, 3)))
        return logits


def deployed_channels_last(module: nn.Module) -> DeployedModel:
    """Return a module of ten classes as the deployed DNN, in the memory layout of repairs."""
    return deployed_of(module.to(memory_format=torch.channels_last).eval(), num_classes=10, name="net")

"""Small DNNs of few classes, failures and clean images that the tests of repairs share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metarepair.data.clean_images import CleanImages
from metarepair.models.build import DeployedModel
from tasks.records import Failures, Ints


def deployed_of(module: nn.Module, *, num_classes: int = 3, name: str = "small") -> DeployedModel:
    """A module as the deployed DNN, with grey for the mean of its images."""
    return DeployedModel(name=name, module=module, num_classes=num_classes, mean=(0.5,) * 3, std=(0.25,) * 3)


def pixels(number: int, seed: int = 0, *, size: int = 8) -> Any:
    """Noise."""
    return np.random.default_rng(seed).integers(256, size=(number, size, size, 3), dtype=np.uint8)


def failures_of(
    labels_N: Ints,
    images_NHWC_u8: Any,
    *,
    predicted_N: Ints | None = None,
    severities_N: Ints | None = None,
    corruption: str = "snow",
) -> Failures:
    """Failures with the first image ids, taken for the next of three classes, at severity 1."""
    number = len(labels_N)
    return Failures(
        corruption=corruption,
        image_ids_N=np.arange(number),
        severities_N=np.ones(number, np.int64) if severities_N is None else severities_N,
        labels_N=labels_N,
        predicted_N=(labels_N + 1) % 3 if predicted_N is None else predicted_N,
        images_NHWC_u8=images_NHWC_u8,
    )


def bright_failures(number: int, seed: int, *, noise: int) -> Failures:
    """Images whose brightness says which of three classes they are of, so that they can be learned."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(3, size=number)
    light = labels[:, None, None, None] * 90 + generator.integers(noise, size=(number, 8, 8, 3))
    return failures_of(labels, light.astype(np.uint8), predicted_N=np.zeros(number, np.int64))


def clean_of(known: Failures) -> CleanImages:
    """The same images and labels as clean ones."""
    return CleanImages(images_NHWC_u8=known.images_NHWC_u8, labels_N=known.labels_N)


def small_net(*, norm: bool = True, dropout: float | None = None, flat: bool = False) -> nn.Module:
    """Three classes of 8 × 8 pixels; `flat` has a batch norm with one value per channel beside."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norms, drops = [nn.BatchNorm2d(4)] if norm else [], [] if dropout is None else [nn.Dropout(dropout)]
        body = [nn.Conv2d(3, 4, 3), *norms, nn.ReLU(), *drops, nn.AvgPool2d(6), nn.Flatten()]
        return nn.Sequential(*body, *([nn.BatchNorm1d(4)] if flat else []), nn.Linear(4, 3)).eval()


class MeanNet(nn.Module):
    """Three classes by the mean of what one convolution sees, for images of any size."""

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6) if norm else nn.Identity()
        self.last = nn.Linear(6, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x_BCHW)).relu().mean((2, 3)))  # type: ignore[no-any-return]


def mean_dnn(*, norm: bool = False) -> DeployedModel:
    """A `MeanNet` of double precision, deployed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return deployed_of(MeanNet(norm=norm).double().eval(), name="net")


class Small(nn.Module):
    """A batch norm, a convolution, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.norm(self.conv(x_BCHW))).mean(dim=(2, 3)))
        return logits


def deployed_channels_last(module: nn.Module) -> DeployedModel:
    """A module of ten classes in the memory layout of repairs, deployed."""
    return deployed_of(module.to(memory_format=torch.channels_last).eval(), num_classes=10, name="net")

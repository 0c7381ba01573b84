"""Predicts with parameters from outside the module, and measures accuracy."""

from __future__ import annotations

import torch
from torch import nn

from metarepair.data.clean_images import LabelledImages
from metarepair.engine.inner import FunctionalNet
from metarepair.engine.types import InnerRule
from metarepair.engine.vectors import State
from metarepair.models.build import DeployedModel

# N images, H W C pixels, K classes


def frozen_net(module: nn.Module) -> FunctionalNet:
    """A net that only predicts: batch norms use their stored statistics."""
    return FunctionalNet(module, InnerRule(steps=1, rate=1.0, batch_norm="frozen"))


def predict(
    deployed: DeployedModel,
    parameters: State,
    buffers: State,
    given: LabelledImages,
    *,
    batch_size: int = 500,
) -> torch.Tensor:
    """Logits [N, K] of the given images, on the CPU. Batch norms use the statistics stored in `buffers`."""
    net = frozen_net(deployed.module)
    images = given.images_NHWC
    parts = [
        net.logits(parameters, buffers, deployed.normalise(images[start : start + batch_size])).float().cpu()
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(parts) if parts else torch.empty(0, deployed.num_classes)


def accuracy_on(deployed: DeployedModel, parameters: State, buffers: State, given: LabelledImages) -> float:
    """The share of the given images that are classified correctly; 0 if there are none."""
    predicted = predict(deployed, parameters, buffers, given).argmax(1).numpy()
    return float((predicted == given.labels_N).mean()) if len(given.labels_N) else 0.0

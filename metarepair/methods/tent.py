"""Tent: make the DNN's predictions on the collected failures more certain, without labels.

Only the scales and shifts of the normalisation layers are trained; all other weights stay fixed. The loss is the
entropy of the predictions, which is low where the DNN is certain. While training, batch norms normalise by the batch at
hand. Afterwards they store the statistics of D_collect.
Source: Wang et al. 2021 (Tent: Fully Test-Time Adaptation by Entropy Minimization), its settings for CIFAR-10-C: Adam
at 1e-3, batches of 200, one step per batch. Tent itself keeps adapting while it predicts. Here it adapts on D_collect
and is then frozen, because a repair must give a DNN to deploy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.section import Positive, Rate, Section
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.bn_adapt import adapt_statistics
from metarepair.methods.examples import BatchOrder
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.models.build import DeployedModel
from tasks.errors import ConfigError
from tasks.records import PixelRows

# B images in a batch, K classes

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


class TentSettings(Section):
    """Settings of Tent. Published: rate 1e-3, batch 200."""

    epochs: Positive = Field(10, description="Passes over D_collect.")
    batch_size: Positive = Field(200, description="Images per step.")
    rate: Rate = Field(1e-3, description="Learning rate of Adam.")


@register
class Tent(Method):
    """Trains the norms' scales and shifts, and stores new batch-norm statistics."""

    name = "tent"
    words = "Tent"
    uses = ("unlabelled",)
    changes = ("weights", "statistics")
    cost = "epochs × (D_collect / batch_size) steps on the norms' parameters"
    Settings = TentSettings

    def check(self, module: nn.Module, settings: Any) -> None:
        require_affine(self.name, module)

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        settings = context.settings
        assert isinstance(settings, TentSettings)
        self.check(deployed.module, settings)
        module, images = deployed.module.eval(), data.learn.images_NHWC
        affine = affine_of(module)
        train_only(module, affine)
        optimizer = torch.optim.Adam(affine, lr=settings.rate)
        for x_BCHW in batches(deployed, images, context, settings.epochs, settings.batch_size):
            with own_batch(module):
                loss = entropy(module(x_BCHW))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            context.budget.spend(images=len(x_BCHW), steps=1)
        adapt_statistics(deployed, images)
        return repaired_from(
            self.name,
            module,
            context.budget,
        )


def entropy(logits_BK: Tensor) -> Tensor:
    """Return the mean entropy of the predictions, in nats (Wang et al. 2021, equation in Sec. 3.1)."""
    return entropies(logits_BK).mean()


def entropies(logits_BK: Tensor) -> Tensor:
    """Return the entropy [B] of each prediction, in nats."""
    log_p_BK = logits_BK.log_softmax(1)
    return -(log_p_BK.exp() * log_p_BK).sum(1)


def require_affine(method: str, module: nn.Module) -> None:
    """Raise ConfigError if no scale and shift of a norm may change."""
    if not affine_of(module):
        raise ConfigError(
            f"{method} trains the scales and shifts of norms, and no norm of this DNN has any with requires_grad=True. "
            f"Leave {method} out."
        )


def batches(
    deployed: DeployedModel, images_NHWC: PixelRows, context: MethodContext, epochs: int, batch_size: int
) -> Iterator[Tensor]:
    """Yield normalised batches [B, C, H, W] of the images in `epochs` random orders, until the budget is over."""
    order = BatchOrder([len(images_NHWC)], batch_size=batch_size, seed=context.seed)
    for step in range(epochs * order.steps_per_epoch):
        if context.budget.over:
            return
        yield deployed.normalise(images_NHWC[order.rows(step)])


def train_only(module: nn.Module, chosen: Sequence[nn.Parameter]) -> None:
    """Set requires_grad for the chosen parameters, and for no others."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)


def affine_of(module: nn.Module) -> list[nn.Parameter]:
    """Return the scales and shifts that may change."""
    norms = (m for m in module.modules() if isinstance(m, NORMS))
    return [p for norm in norms for p in norm.parameters(recurse=False) if p.requires_grad]


@contextmanager
def own_batch(module: nn.Module) -> Iterator[None]:
    """Let batch norms normalise by the batch at hand; their stored statistics do not change."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [(m.training, m.track_running_stats) for m in norms]
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm, (training, tracks) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracks

"""SAR: Tent on reliable images, with sharpness-aware steps, and a reset if the predictions collapse.

As in Tent, scales and shifts of norms are trained by the entropy of predictions without labels; here not those of the
last norms, which change the prediction the most. Images above a margin of entropy do not count. A step follows the
gradient at nearby weights, at which the entropy is higher (sharpness-aware minimisation). If the entropy nears 0, as
when all images are given one class, the deployed weights are restored.
Source: Niu et al. 2023 (Towards Stable Test-Time Adaptation in Dynamic Wild World), Eq. 2 to 6, its settings for
ResNet-50 on ImageNet: SGD 2.5e-4 with momentum 0.9, batches of 64, margin 0.4 ln K, radius 0.05, reset at 0.2; there
the norms of the last stage stay, here the last quarter of all norms. SAR adapts while it predicts; here it adapts on
D_collect, in several passes, and is then frozen, because a repair must give a DNN to deploy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.section import Fraction, Positive, Rate, Section
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.bn_adapt import adapt_statistics
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.methods.tent import affine_of, batches, entropies, own_batch, train_only
from metarepair.models.build import DeployedModel
from tasks.errors import ConfigError

# B images in a batch, K classes

MEMORY = 0.9  # of the mean loss, per step


class SarSettings(Section):
    """Settings of SAR. Published for a ResNet-50 on ImageNet: the defaults, with `kept` for its last stage."""

    epochs: Positive = Field(10, description="Passes over D_collect.")
    batch_size: Positive = Field(64, description="Images per step.")
    rate: Rate = Field(2.5e-4, description="Learning rate of SGD with momentum 0.9.")
    margin: Annotated[float, Field(gt=0, le=1)] = Field(
        0.4, description="Largest entropy of an image that counts, as a share of the largest possible (ln K)."
    )
    radius: Annotated[float, Field(ge=0)] = Field(
        0.05, description="Distance to the place that a step goes from."
    )
    reset: Annotated[float, Field(ge=0)] = Field(
        0.2, description="Mean entropy, in nats, below which the deployed weights are restored."
    )
    kept: Fraction = Field(0.25, description="Share of the norms, from the last, that are not trained.")


@register
class Sar(Method):
    """Trains the norms' scales and shifts by sharpness-aware steps, and stores new batch-norm statistics."""

    name = "sar"
    words = "SAR"
    uses = ("unlabelled",)
    changes = ("weights", "statistics")
    cost = "epochs × (D_collect / batch_size) steps on the norms' parameters, two passes each"
    Settings = SarSettings

    def check(self, module: nn.Module, settings: Any) -> None:
        assert isinstance(settings, SarSettings)
        if not _trained(module, settings):
            raise ConfigError(
                "sar trains the scales and shifts of norms, and no norm of this DNN that it trains (methods.sar.kept) "
                "has any with requires_grad=True. Lower methods.sar.kept, or leave sar out."
            )

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        settings = context.settings
        assert isinstance(settings, SarSettings)
        self.check(deployed.module, settings)
        module, images = deployed.module.eval(), data.learn.images_NHWC
        trained = _trained(module, settings)
        train_only(module, trained)
        start = [parameter.detach().clone() for parameter in trained]
        optimizer, mean, resets = _optimizer(trained, settings), math.nan, 0
        highest = settings.margin * math.log(deployed.num_classes)
        for x_BCHW in batches(deployed, images, context, settings.epochs, settings.batch_size):
            loss = _step(module, x_BCHW, trained, optimizer, highest=highest, radius=settings.radius)
            context.budget.spend(images=2 * len(x_BCHW), steps=int(loss is not None))
            if loss is None:
                continue
            mean = loss if math.isnan(mean) else MEMORY * mean + (1 - MEMORY) * loss
            if mean < settings.reset:
                with torch.no_grad():
                    for parameter, before in zip(trained, start, strict=True):
                        parameter.copy_(before)
                optimizer, mean, resets = _optimizer(trained, settings), math.nan, resets + 1
        adapt_statistics(deployed, images)
        notes = (
            (f"the deployed weights were restored {resets} times, as the entropy neared 0",) if resets else ()
        )
        return repaired_from(self.name, module, context.budget, notes=notes)


def _trained(module: nn.Module, settings: SarSettings) -> list[nn.Parameter]:
    """Return the scales and shifts of all norms but the last ones."""
    affine = affine_of(module)
    owners = [
        norm
        for norm in module.modules()
        if any(p is q for p in norm.parameters(recurse=False) for q in affine)
    ]
    trained = owners[: len(owners) - round(settings.kept * len(owners))]
    return [p for norm in trained for p in norm.parameters(recurse=False) if p.requires_grad]


def _optimizer(parameters: Sequence[nn.Parameter], settings: SarSettings) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=settings.rate, momentum=0.9)


def _step(
    module: nn.Module,
    x_BCHW: Tensor,
    trained: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    highest: float,
    radius: float,
) -> float | None:
    """Take one sharpness-aware step; return the entropy nearby, None if no image counts (Eq. 2 to 4)."""
    with own_batch(module):
        entropy_B = entropies(module(x_BCHW))
    counts_B = entropy_B.detach() < highest
    if not counts_B.any():
        return None
    gradients = torch.autograd.grad(entropy_B[counts_B].mean(), list(trained))
    norm = torch.stack([g.norm() for g in gradients]).norm() + 1e-12
    here = [parameter.detach().clone() for parameter in trained]
    with torch.no_grad():
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.add_(radius * gradient / norm)
    with own_batch(module):
        nearby_B = entropies(module(x_BCHW))[counts_B]
    nearby_B = nearby_B[nearby_B.detach() < highest]
    optimizer.zero_grad(set_to_none=True)
    if len(nearby_B):
        torch.autograd.backward(nearby_B.mean())
    with torch.no_grad():
        for parameter, before in zip(trained, here, strict=True):
            parameter.copy_(before)
    if not len(nearby_B):
        return None
    optimizer.step()
    return float(nearby_B.detach().mean())

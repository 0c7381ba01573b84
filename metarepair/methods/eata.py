"""EATA: Tent on the images that are certain and not redundant, held near the deployed weights.

As in Tent, only scales and shifts of norms are trained, by the entropy of predictions without labels. An image counts
if its entropy is below a margin, and the more the lower it is; and only if its prediction differs from the mean of the
earlier ones. A penalty by the Fisher information of clean images holds what these need.
Source: Niu et al. 2022 (Efficient Test-Time Model Adaptation without Forgetting), Eq. 2 to 9, its settings for
CIFAR-10: SGD 0.005 with momentum 0.9, batches of 200, margin 0.4 ln K, similarity 0.4, penalty 1, 2,000 clean images.
For ImageNet they are 2.5e-4, 64, 0.4 ln K, 0.05 and 2000. EATA adapts while it predicts; here it adapts on D_collect,
in several passes, and is then frozen, because a repair must give a DNN to deploy.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.section import Positive, Rate, Section
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.bn_adapt import adapt_statistics
from metarepair.methods.examples import clean_beside_failures
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.methods.tent import affine_of, batches, entropies, own_batch, require_affine, train_only
from metarepair.models.build import DeployedModel
from tasks.keys import keyed_generator

# B images in a batch, K classes

MEMORY = 0.9  # of the mean prediction, per step
FISHER_BATCH = 64  # clean images whose gradient is squared at a time, as published


class EataSettings(Section):
    """Settings of EATA. Published for CIFAR-10: the defaults."""

    epochs: Positive = Field(10, description="Passes over D_collect.")
    batch_size: Positive = Field(200, description="Images per step.")
    rate: Rate = Field(0.005, description="Learning rate of SGD with momentum 0.9.")
    margin: Annotated[float, Field(gt=0, le=1)] = Field(
        0.4, description="Largest entropy of an image that counts, as a share of the largest possible (ln K)."
    )
    similarity: Annotated[float, Field(gt=0, le=1)] = Field(
        0.4, description="Largest cosine between an image's prediction and the mean of the earlier ones."
    )
    penalty: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Weight of the squared distance from the deployed weights, by Fisher information."
    )
    clean_images: Positive = Field(2000, description="Clean images for the Fisher information; at most all.")


@register
class Eata(Method):
    """Trains the norms' scales and shifts on reliable images, and stores new batch-norm statistics."""

    name = "eata"
    words = "EATA"
    uses = ("unlabelled", "clean")
    changes = ("weights", "statistics")
    cost = "epochs × (D_collect / batch_size) steps on the norms' parameters, and a pass over clean_images"
    Settings = EataSettings

    def check(self, module: nn.Module, settings: Any) -> None:
        require_affine(self.name, module)

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        settings = context.settings
        assert isinstance(settings, EataSettings)
        self.check(deployed.module, settings)
        module, images = deployed.module.eval(), data.learn.images_NHWC
        affine = affine_of(module)
        train_only(module, affine)
        start = [parameter.detach().clone() for parameter in affine]
        importance = self._fisher(deployed, affine, data, context)
        optimizer = torch.optim.SGD(affine, lr=settings.rate, momentum=0.9)
        mean_K: Tensor | None = None
        for x_BCHW in batches(deployed, images, context, settings.epochs, settings.batch_size):
            with own_batch(module):
                logits_BK = module(x_BCHW)
            loss, mean_K = reliable_loss(
                logits_BK, mean_K, margin=settings.margin, similarity=settings.similarity
            )
            if loss is not None:
                for parameter, before, weight in zip(affine, start, importance, strict=True):
                    loss = loss + settings.penalty * (weight * (parameter - before) ** 2).sum()
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
            context.budget.spend(images=len(x_BCHW), steps=int(loss is not None))
        adapt_statistics(deployed, images)
        return repaired_from(self.name, module, context.budget)

    def _fisher(
        self, deployed: DeployedModel, affine: list[nn.Parameter], data: RepairData, context: MethodContext
    ) -> list[Tensor]:
        """Return the mean squared gradient of the loss on the predicted classes of clean images (Eq. 8 and 9)."""
        settings = context.settings
        assert isinstance(settings, EataSettings)
        clean = clean_beside_failures(self.name, data)
        drawn = clean.sample(settings.clean_images, keyed_generator("eata-clean", context.seed))
        total = [torch.zeros_like(parameter) for parameter in affine]
        starts = range(0, len(drawn), FISHER_BATCH)
        for start in starts:
            x_BCHW = deployed.normalise(drawn.images_NHWC[start : start + FISHER_BATCH])
            with own_batch(deployed.module):
                logits_BK = deployed.module(x_BCHW)
            gradients = torch.autograd.grad(F.cross_entropy(logits_BK, logits_BK.argmax(1)), affine)
            for square, gradient in zip(total, gradients, strict=True):
                square += gradient**2 / len(starts)
            context.budget.spend(images=len(x_BCHW))
        return total


def reliable_loss(
    logits_BK: Tensor, mean_K: Tensor | None, *, margin: float, similarity: float
) -> tuple[Tensor | None, Tensor | None]:
    """Return the weighted entropy of the images that count, None if none does, and the new mean prediction."""
    highest = margin * math.log(logits_BK.shape[1])
    entropy_B, probability_BK = entropies(logits_BK), logits_BK.softmax(1).detach()
    counts_B = entropy_B.detach() < highest  # Eq. 3: reliable
    if mean_K is not None:
        counts_B &= (
            F.cosine_similarity(mean_K[None], probability_BK).abs() < similarity
        )  # Eq. 4: not redundant
    if not counts_B.any():
        return None, mean_K
    entropy_B, mine_K = entropy_B[counts_B], probability_BK[counts_B].mean(0)
    weight_B = (highest - entropy_B.detach()).exp()
    return (weight_B * entropy_B).mean(), mine_K if mean_K is None else MEMORY * mean_K + (
        1 - MEMORY
    ) * mine_K

"""Plain fine-tuning by SGD on failures and clean images, from the deployed or from other given weights.

This is what one would write without any method: batches of failures and clean images in equal parts, momentum, a
learning rate that falls along a cosine, flips and shifts. Of twenty states during the training, and the one before it,
the best on held-out failures and held-out clean images is kept, both with the same weight.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metarepair.adaptation.meta_test import Start
from metarepair.adaptation.repair_data import RepairData
from metarepair.config.section import Fraction, Positive, Rate
from metarepair.engine.vectors import put_state
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.budget import BudgetPart
from metarepair.methods.examples import Examples, clean_beside_failures
from metarepair.methods.joint import PREPARED
from metarepair.methods.metarepair import TRAINED
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.methods.training import MethodBatch, Training, TrainingSettings
from metarepair.models.build import DeployedModel
from metarepair.models.wrappers import copied
from metarepair.pretraining.augmentation import Draws, flipped_and_shifted
from tasks.keys import keyed_generator


class SgdSettings(TrainingSettings):
    """Settings of plain fine-tuning."""

    epochs: Positive = Field(
        20, description="Passes over failures and clean images; the budget may end it earlier."
    )
    batch_size: Positive = Field(200, description="Examples per step.")
    rate: Rate = Field(0.01, description="Learning rate, the largest of the schedule.")
    rates: tuple[Rate, ...] | None = Field(
        None,
        min_length=1,
        description="Learning rates to try in place of `rate`, each in an equal part of the budget; held-out images "
        "choose.",
    )
    collected_share: Fraction | None = Field(0.5, description="Share of failures in a batch.")
    clean_images: Positive = Field(
        2000, description="Clean images to learn from, drawn at random; at most all."
    )
    clean_weight: Fraction = Field(
        0.5,
        description="Weight of held-out clean images, beside that of held-out failures, in the choice of a state.",
    )
    flip: bool = Field(True, description="Flip half of the images left to right.")
    shift: Annotated[int, Field(ge=0, le=16)] = Field(
        4, description="Largest shift of an image in each direction, in pixels; edges are reflected."
    )


@register
class Sgd(Method):
    """Fine-tunes the deployed DNN."""

    name = "sgd"
    words = "fine-tuned by SGD"
    uses = ("failures", "clean")
    changes = ("weights", "statistics")
    cost = "epochs × (D_collect ∪ clean_images) / batch_size steps"
    Settings = SgdSettings

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        return tuned(self.name, deployed, data, context)


@register
class MetaRepairSgd(Method):
    """Fine-tunes θ_meta: MetaRepair with plain fine-tuning as its meta-test."""

    name = "metarepair_sgd"
    words = "MetaRepair, fine-tuned by SGD"
    uses = ("failures", "clean", "experiences")
    changes = ("weights", "statistics")
    cost = f"the same as sgd; {TRAINED}"
    Settings = SgdSettings

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        return tuned_from(self.name, context.load_meta(), deployed, data, context)


@register
class JointSgd(Method):
    """Fine-tunes the jointly trained DNN."""

    name = "joint_sgd"
    words = "joint training, fine-tuned by SGD"
    uses = ("failures", "clean", "joint")
    changes = ("weights", "statistics")
    cost = f"the same as sgd; {PREPARED}"
    Settings = SgdSettings

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        return tuned_from(self.name, context.load_joint(), deployed, data, context)


def tuned_from(
    method: str, start: Start, deployed: DeployedModel, data: RepairData, context: MethodContext
) -> RepairedModel:
    """`tuned`, from the weights of `start`."""
    put_state(deployed.module, start.parameters | start.buffers)
    return tuned(method, deployed, data, context)


def tuned(method: str, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
    """Fine-tune `deployed.module` in place, and return the best state."""
    settings = context.settings
    assert isinstance(settings, SgdSettings)
    clean = clean_beside_failures(method, data)
    drawn = clean.sample(settings.clean_images, keyed_generator("sgd-clean", context.seed))
    shift = min(
        settings.shift, min(data.learn.images_NHWC.shape[1:3]) - 1
    )  # reflected edges need as many pixels

    def loss(module: nn.Module, batch: MethodBatch) -> Tensor:
        size = len(batch.labels_B)
        draws = Draws(
            flip_B=batch.generator.random(size),
            shift_B2=batch.generator.random((size, 2)),
            operations_BO=np.empty((size, 0)),
        )
        x_BCHW = deployed.normalise(batch.images_BHWC_u8)
        return F.cross_entropy(
            module(flipped_and_shifted(x_BCHW, draws, flip=settings.flip, shift=shift)), batch.labels_B
        )

    examples = Examples(data.learn, drawn) if len(drawn) else Examples(data.learn)
    rates = settings.rates or (settings.rate,)
    tried: list[tuple[Training, nn.Module]] = []
    for number, rate in enumerate(rates):
        alone = len(rates) == 1
        part = BudgetPart(context.budget, end=1 / (len(rates) - number))
        folder = context.folder if alone or context.folder is None else context.folder / f"rate-{number}"
        training = Training(
            deployed.module if alone else copied(deployed.module),
            deployed,
            examples,
            data,
            context if alone else replace(context, budget=part, folder=folder),
            settings.model_copy(update={"rate": rate}),
            loss,
            method=method,
            clean_weight=settings.clean_weight,
        )
        tried.append((training, training.run()))
    best, module = max(tried, key=lambda one: one[0].best_accuracy)
    notes = (f"rate {best.settings.rate:g} chosen on held-out images",) if settings.rates else ()
    return repaired_from(method, module, context.budget, notes=notes)

"""AugMix: train the DNN to predict the same for an image and for mixtures of its augmented versions.

A mixture is a weighted mean of the image and of several copies, each changed by a chain of random operations such as
rotation, shear or posterize. The loss is the cross entropy on the image itself, plus a term that is 0 if the
predictions for the image and for two mixtures of it agree. This makes predictions stable under small changes of an
image. The examples are failures of D_collect and clean images.
Source: Hendrycks et al. 2020 (AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty), Sec. 3,
with the numbers of its CIFAR-10 training. The paper trains from scratch on clean images; as a repair, it fine-tunes
the deployed DNN on D_collect ∪ clean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.section import Positive
from metarepair.methods.augmix.operations import flip_and_crop_matrices, mixture, move, sample_mix
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.examples import Examples, clean_beside_failures
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.methods.training import MethodBatch, Training, TrainingSettings
from metarepair.models.build import DeployedModel
from tasks.records import Ints, Pixels

# V views (the image and two mixtures), B images, C channels, H W pixels, K classes

VIEWS = 3
SMALLEST = 1e-7  # least probability in the mean prediction, so that its logarithm is finite


class AugMixSettings(TrainingSettings):
    """Settings of AugMix.

    Published: severity 3, 3 chains of 1 to 3 operations, consistency 12; SGD 0.1, batch 128, 100 epochs.
    """

    severity: Annotated[float, Field(gt=0.1, le=10)] = Field(
        3.0, description="Largest level of an operation; 10 is full strength."
    )
    width: Positive = Field(3, description="Number of chains of operations in a mixture.")
    depth: Positive | None = Field(None, description="Operations in a chain; by default 1, 2 or 3 at random.")
    consistency: Annotated[float, Field(gt=0)] = Field(
        12.0, description="Weight of the Jensen-Shannon divergence; the cross entropy has weight 1."
    )
    flip: bool = Field(True, description="Flip half of the images left to right.")
    shift: Annotated[int, Field(ge=0, le=64)] = Field(
        4, description="Largest shift of an image, in pixels; uncovered pixels are black."
    )


@register
class AugMix(Method):
    """Fine-tunes by cross entropy on an image, and agreement of the predictions for it and two mixtures of it."""

    name = "augmix"
    words = "AugMix"
    uses = ("failures", "clean")
    changes = ("weights", "statistics")
    cost = "epochs × (D_collect ∪ clean) / batch_size steps with three forward passes per example"
    Settings = AugMixSettings

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        settings = context.settings
        assert isinstance(settings, AugMixSettings)
        examples = Examples(data.learn, clean_beside_failures(self.name, data))
        loss = AugMixLoss(deployed=deployed, settings=settings)
        training = Training(
            deployed.module,
            deployed,
            examples,
            data,
            context,
            settings,
            loss,
            method=self.name,
            images_per_example=VIEWS,
        )
        return repaired_from(self.name, training.run(), context.budget)


@dataclass(frozen=True, kw_only=True)
class AugMixLoss:
    """Computes the loss of a batch (Hendrycks et al. 2020, Sec. 3 "Jensen-Shannon Divergence Consistency Loss").

    stylise: returns the images of given rows in another style, for a tenth operation; None for no such operation.
    """

    deployed: DeployedModel
    settings: AugMixSettings
    stylise: Callable[[Ints], Pixels] | None = None

    def __call__(self, module: nn.Module, batch: MethodBatch) -> Tensor:
        views_VBHWC = self.views(batch)
        x = replace(self.deployed, module=module).normalise(views_VBHWC.flatten(0, 1))
        logits_VBK: Tensor = module(x).view(VIEWS, len(batch.labels_B), -1)
        return F.cross_entropy(logits_VBK[0], batch.labels_B) + self.settings.consistency * divergence(
            logits_VBK
        )

    def views(self, batch: MethodBatch) -> Tensor:
        """Return pixels from 0 to 255 [V, B, H, W, C]: each image, flipped and shifted, and two mixtures of it."""
        settings, generator = self.settings, batch.generator
        images_BCHW = self._to_device(batch.images_BHWC_u8)
        size, width = len(images_BCHW), images_BCHW.shape[3]
        matrices = flip_and_crop_matrices(
            generator, size, width=width, flip=settings.flip, shift=settings.shift
        )
        images_BCHW = move(images_BCHW, matrices)
        draws = sample_mix(
            generator,
            (VIEWS - 1) * size,
            severity=settings.severity,
            width=settings.width,
            depth=settings.depth,
            style=self.stylise is not None,
        )
        styled_BCHW = images_BCHW
        if self.stylise is not None:
            rows = np.flatnonzero(draws.styled_BW.any(1).reshape(VIEWS - 1, size).any(0))
            styled_BCHW = images_BCHW.clone()
            other = self._to_device(self.stylise(batch.rows_B[rows]))
            # Shifted after the transfer, so that the statistics of an image do not include the black edge.
            styled_BCHW[torch.from_numpy(rows).to(other.device)] = move(other, matrices[rows])
        mixed = mixture(
            images_BCHW.repeat(VIEWS - 1, 1, 1, 1),
            draws,
            styled_BCHW_u8=styled_BCHW.repeat(VIEWS - 1, 1, 1, 1),
        )
        views = torch.cat([images_BCHW, mixed]).view(VIEWS, *images_BCHW.shape)
        return views.permute(0, 1, 3, 4, 2).contiguous()

    def _to_device(self, images_BHWC_u8: Pixels) -> Tensor:
        on_device = torch.from_numpy(images_BHWC_u8).to(self.deployed.device)
        return on_device.permute(0, 3, 1, 2).contiguous()


def divergence(logits_VBK: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of the views' predictions, in nats, averaged over images.

    It is the mean Kullback-Leibler divergence of the predictions from their mean: 0 if all views are predicted the
    same, and log V at most.
    """
    log_p_VBK = logits_VBK.log_softmax(2)
    p_VBK = log_p_VBK.exp()
    log_mean_BK = p_VBK.mean(0).clamp(SMALLEST, 1).log()
    return (p_VBK * (log_p_VBK - log_mean_BK)).sum(2).mean()

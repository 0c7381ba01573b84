"""SENSEI: train the DNN on the transformed variant of each image that it finds hardest.

A variant is the image after a rotation, a shift and a shear. For each training image, a genetic search keeps a
population of variants; one generation runs whenever the image is in a batch, and prefers variants with a large loss.
The DNN is then trained on the variant with the largest loss. Images that are already classified well in their worst
variant can be skipped by the search (SENSEI-SA). The examples are failures of D_collect and clean images.
Source: Gao et al., ICSE 2020 (Fuzz Testing based Data Augmentation to Improve Robustness of Deep Neural Networks);
numbers of the authors' code for CIFAR-10. As there, fitness is the loss of the current DNN in evaluation mode, so the
loss of a variant does not depend on other variants, and batch-norm statistics come only from the images that are
trained on. Their code lowers the rate in two steps, this one by cosine. Theirs also flips and mixes images, which is
not part of the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.section import Fraction, Positive, Rate
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.budget import Budget
from metarepair.methods.examples import Examples, clean_beside_failures
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.methods.sensei.populations import Losses, Populations
from metarepair.methods.sensei.variants import FILTER_GENES, Gene, Genes, spatial_genes, variants
from metarepair.methods.training import MethodBatch, Training, TrainingSettings
from metarepair.models.build import DeployedModel
from tasks.records import Ints, Pixels

# B images in a batch, V variants of an image, G genes, C H W pixels

AT_ONCE = {"cpu": 200, "cuda": 2000}  # variants in a forward pass: more need more memory and are not faster


class SenseiSettings(TrainingSettings):
    """Settings of SENSEI; `skip_below` > 0 is SENSEI-SA.

    Published: 10 variants of which 4 are kept, 200 epochs, batch 512, SGD 0.1.
    """

    epochs: Positive = Field(
        200, description="Passes over all examples; the budget may end training earlier."
    )
    batch_size: Positive = Field(512, description="Examples per step.")
    rate: Rate = Field(0.1, description="Learning rate, the largest of the schedule.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="L2 decay, as in torch.optim.")
    variants: int = Field(10, ge=3, le=100, description="Variants of an image that are evaluated in a step.")
    keep: int = Field(
        4, ge=2, le=50, description="Fittest variants of an image that are kept; below `variants`."
    )
    mutate: Fraction = Field(
        0.6, description="Probability that a batch mutates its best variants; otherwise it crosses variants."
    )
    skip_below: Annotated[float, Field(ge=0)] = Field(
        1e-3,
        description="An image is not searched if the loss of its worst variant, in nats, is below this; 0: all are.",
    )
    rotation: Annotated[float, Field(gt=0, le=180)] = Field(30.0, description="Largest rotation, in degrees.")
    translation: Annotated[float, Field(gt=0)] = Field(3.0, description="Largest shift, in pixels.")
    shear: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="Largest slope of the horizontal shear."
    )
    filters: bool = Field(
        False, description="Also zoom 0.9 to 1.1, brightness -32 to 32 (of 255) and contrast 0.8 to 1.2."
    )

    @model_validator(mode="after")
    def _room_for_children(self) -> SenseiSettings:
        if self.keep >= self.variants:
            raise ValueError(
                f"keep={self.keep} leaves no new variants among variants={self.variants}; give a smaller keep"
            )
        return self

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The genes of a transformation vector."""
        spatial = spatial_genes(rotation=self.rotation, translation=self.translation, shear=self.shear)
        return spatial + FILTER_GENES if self.filters else spatial


@register
class Sensei(Method):
    """Trains on natural transformations of the images that a genetic search finds hardest."""

    name = "sensei"
    words = "SENSEI"
    uses = ("failures", "clean")
    changes = ("weights", "statistics")
    cost = (
        "epochs × (D_collect ∪ clean / batch_size) steps, each with `variants` more forward passes per image"
    )
    Settings = SenseiSettings

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        settings = context.settings
        assert isinstance(settings, SenseiSettings)
        examples = Examples(data.learn, clean_beside_failures(self.name, data))
        populations = Populations(settings.genes, images=len(examples), keep=settings.keep, seed=context.seed)
        training = Training(
            deployed.module,
            deployed,
            examples,
            data,
            context,
            settings,
            WorstVariantLoss(deployed, populations, settings, context.budget),
            method=self.name,
            remembers=populations,
        )
        return repaired_from(self.name, training.run(), context.budget)


class WorstVariantLoss:
    """Runs one generation of the search, then returns the cross entropy of each image's worst variant."""

    def __init__(
        self, deployed: DeployedModel, populations: Populations, settings: SenseiSettings, budget: Budget
    ) -> None:
        self.deployed, self.populations, self.settings, self.budget = deployed, populations, settings, budget

    def __call__(self, module: nn.Module, batch: MethodBatch) -> Tensor:
        module.eval()
        self._search(module, batch)
        module.train()
        worst_B1G = self.populations.vectors_NPG[batch.rows_B, :1]
        x_BCHW = normalised_variants(
            self.deployed, batch.images_BHWC_u8, worst_B1G, genes=self.settings.genes
        )
        return F.cross_entropy(module(x_BCHW), batch.labels_B)

    def _search(self, module: nn.Module, batch: MethodBatch) -> None:
        """Run one generation. Of an image that was robust at its last evaluation, evaluate only the worst variant."""
        robust_B = self.populations.losses_NP[batch.rows_B, 0] < self.settings.skip_below
        for places, search in (
            ((~robust_B).nonzero()[0], self._generation),
            (robust_B.nonzero()[0], self._best_again),
        ):
            if len(places):
                search(module, batch, places)

    def _generation(self, module: nn.Module, batch: MethodBatch, places: Ints) -> None:
        """Evaluate the populations of the images at these places of the batch, with their new children."""
        rows, settings = batch.rows_B[places], self.settings
        children_BKG = self.populations.children(
            rows,
            settings.variants - settings.keep,
            mutate_probability=settings.mutate,
            generator=batch.generator,
        )
        vectors_BVG = np.concatenate([self.populations.vectors_NPG[rows], children_BKG], axis=1)
        self.populations.keep_fittest(rows, vectors_BVG, self._evaluate(module, batch, places, vectors_BVG))

    def _best_again(self, module: nn.Module, batch: MethodBatch, places: Ints) -> None:
        rows = batch.rows_B[places]
        best_B1G = self.populations.vectors_NPG[rows, :1]
        self.populations.losses_NP[rows, :1] = self._evaluate(module, batch, places, best_B1G)

    def _evaluate(self, module: nn.Module, batch: MethodBatch, places: Ints, vectors_BVG: Genes) -> Losses:
        """Return the losses [B, V] of variants of the images at these places of the batch."""
        images_BHWC_u8, labels_B = batch.images_BHWC_u8[places], batch.labels_B[torch.from_numpy(places)]
        losses_BV = variant_losses(
            self.deployed, module, images_BHWC_u8, labels_B, vectors_BVG, genes=self.settings.genes
        )
        self.budget.spend(images=losses_BV.numel())
        return losses_BV.cpu().numpy()


def normalised_variants(
    deployed: DeployedModel, images_BHWC_u8: Pixels, vectors_BVG: Genes, *, genes: Sequence[Gene]
) -> Tensor:
    """Return normalised variants [B * V, C, H, W]: all of the first image, then all of the next."""
    images_BCHW = torch.from_numpy(images_BHWC_u8).to(deployed.device, deployed.dtype).permute(0, 3, 1, 2)
    given_BVG = torch.from_numpy(vectors_BVG).to(deployed.device, deployed.dtype)
    return deployed.normalise(variants(images_BCHW, given_BVG, genes).flatten(0, 1))


@torch.no_grad()
def variant_losses(
    deployed: DeployedModel,
    module: nn.Module,
    images_BHWC_u8: Pixels,
    labels_B: Tensor,
    vectors_BVG: Genes,
    *,
    genes: Sequence[Gene],
) -> Tensor:
    """Return the loss [B, V] of each variant, float32; `module` must be in evaluation mode."""
    number = vectors_BVG.shape[1]
    step = max(1, AT_ONCE.get(deployed.device.type, AT_ONCE["cpu"]) // number)
    parts = []
    for start in range(0, len(vectors_BVG), step):
        some = slice(start, start + step)
        logits = module(normalised_variants(deployed, images_BHWC_u8[some], vectors_BVG[some], genes=genes))
        parts.append(
            F.cross_entropy(logits, labels_B[some].repeat_interleave(number), reduction="none").float()
        )
    return torch.cat(parts).view(-1, number)

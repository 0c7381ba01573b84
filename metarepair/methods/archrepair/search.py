"""Search the weights and the α of a relaxed block.

Source: Liu et al. 2019 (DARTS), Algorithm 1, first order: a step of the weights on one half of the examples alternates
with a step of α on the other half. The weights go first, so a budget of one step goes to them.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.section import Fraction, Positive, Rate
from metarepair.data.clean_images import CleanImages
from metarepair.engine.stateless import seeded
from metarepair.engine.vectors import State, copied_buffers, copied_parameters
from metarepair.meta_training.outer import load_optimizer_state, optimizer_state
from metarepair.methods.archrepair.block import RelaxedBlock
from metarepair.methods.base import MethodContext
from metarepair.methods.examples import Examples
from metarepair.methods.training import (
    Loss,
    MethodBatch,
    Training,
    TrainingSettings,
    batch_order,
    method_batch,
)
from metarepair.models.build import DeployedModel
from tasks.errors import DataError
from tasks.keys import keyed_generator
from tasks.records import Failures, Ints, Pixels

# B images in a batch, O operations


class SearchSettings(TrainingSettings):
    """Settings of the search, with the numbers of DARTS.

    50 epochs, batch 64, SGD from 0.025 to 0.001; for α, Adam at 3e-4 with weight decay 1e-3.
    """

    epochs: Positive = Field(
        50, description="Passes over one half of the examples; the budget may end it earlier."
    )
    batch_size: Positive = Field(64, description="Examples per step, for the weights and for α each.")
    rate: Rate = Field(0.025, description="Learning rate of the weights, the largest of the schedule.")
    least_rate: Annotated[float, Field(ge=0, le=10)] = Field(
        0.001, description="Learning rate of the weights that cosine falls to; at most `rate`."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(3e-4, description="L2 decay of the weights.")
    collected_share: Fraction | None = Field(
        0.5, description="Share of failures in a batch; null: their share in the union with the clean images."
    )
    alpha_rate: Rate = Field(3e-4, description="Learning rate of Adam for α.")
    alpha_weight_decay: Annotated[float, Field(ge=0)] = Field(1e-3, description="L2 decay of α.")


def block_loss(deployed: DeployedModel, block: nn.Module) -> Loss:
    """Return the cross-entropy loss, with the block in training mode and the rest of the DNN in evaluation mode."""

    def loss(module: nn.Module, batch: MethodBatch) -> Tensor:
        module.eval()
        block.train()
        return F.cross_entropy(module(deployed.normalise(batch.images_BHWC_u8)), batch.labels_B)

    return loss


class Half(Examples):
    """A subset of each source as a new set of examples. Pixels are copied only on request."""

    def __init__(self, whole: Examples, rows_of_sources: tuple[Ints, ...]) -> None:
        self._whole, self._rows_N = whole, np.concatenate(rows_of_sources)
        self.sizes = [len(rows) for rows in rows_of_sources]
        self.labels_N = whole.labels_N[self._rows_N]

    def images(self, rows: Ints) -> Pixels:
        return self._whole.images(self._rows_N[rows])


@dataclass(frozen=True, kw_only=True)
class Halves:
    """The examples that the weights learn from, and those that α learns from."""

    weights: Examples
    alpha: Examples


def halves(failures: Failures, clean: CleanImages, seed: int) -> Halves:
    """Split D_collect ∪ clean into two halves.

    D_collect is split by image: an image that fails at two severities is in one half only. Raises DataError if there
    are fewer than two images of either kind.
    """
    generator = keyed_generator("archrepair-halves", seed)
    images = generator.permutation(np.unique(failures.image_ids_N))
    order = generator.permutation(len(clean)) + len(failures)
    if len(images) < 2 or len(order) < 2:
        raise DataError(
            f"archrepair searches on two halves of D_collect and of the clean images, and there are {len(images)} "
            f"image(s) in D_collect and {len(order)} clean one(s). Collect failures of at least two images, and give "
            "at least two clean images."
        )
    second_N = np.isin(failures.image_ids_N, images[len(images) // 2 :])
    whole, middle = Examples(failures, clean), len(order) // 2
    return Halves(
        weights=Half(whole, (np.flatnonzero(~second_N), np.sort(order[:middle]))),
        alpha=Half(whole, (np.flatnonzero(second_N), np.sort(order[middle:]))),
    )


class AlphaSteps:
    """Takes single Adam steps on α, on examples that the weights do not learn from."""

    def __init__(
        self,
        relaxed: RelaxedBlock,
        deployed: DeployedModel,
        examples: Examples,
        context: MethodContext,
        settings: SearchSettings,
    ) -> None:
        self.alpha_O, self.loss = relaxed.alpha_O, block_loss(deployed, relaxed)
        self.deployed, self.examples, self.context = deployed, examples, context
        self.order = batch_order(examples, settings, context.seed)
        self.adam = torch.optim.Adam(
            [self.alpha_O],
            lr=settings.alpha_rate,
            betas=(0.5, 0.999),
            weight_decay=settings.alpha_weight_decay,
        )

    def take(self, module: nn.Module, step: int) -> None:
        """Take step number `step`, from 0."""
        generator = keyed_generator("archrepair-alpha", self.context.seed, step)
        batch = method_batch(self.examples, self.order.rows(step), generator, device=self.deployed.device)
        with seeded(self.deployed.device, int(generator.integers(2**63))):
            loss = self.loss(module, batch)
            (self.alpha_O.grad,) = torch.autograd.grad(loss, [self.alpha_O])
        self.adam.step()
        self.context.budget.spend(images=len(batch.rows_B), steps=1)

    def state(self) -> State:
        return optimizer_state(self.adam, {"alpha": self.alpha_O})

    def load(self, state: State) -> None:
        load_optimizer_state(self.adam, {"alpha": self.alpha_O}, state)


class Search(Training):
    """Trains the weights of the relaxed block, with a step of α after each step of the weights."""

    def __init__(
        self,
        relaxed: RelaxedBlock,
        deployed: DeployedModel,
        given: Halves,
        data: RepairData,
        context: MethodContext,
        settings: SearchSettings,
        *,
        method: str,
        frozen: Collection[int],
    ) -> None:
        self._steps = AlphaSteps(relaxed, deployed, given.alpha, context, settings)
        self._floor = settings.least_rate / settings.rate
        super().__init__(
            deployed.module,
            deployed,
            given.weights,
            data,
            context,
            settings,
            block_loss(deployed, relaxed),
            method=method,
            trainable=names_in(deployed.module, relaxed, without={id(relaxed.alpha_O), *frozen}),
            remembers=self._steps,
        )
        relaxed.alpha_O.requires_grad_(True)

    def _rate_factor(self, share: float) -> float:
        if self.settings.schedule == "constant":
            return 1.0
        return self._floor + (1 - self._floor) * 0.5 * (1 + math.cos(math.pi * share))

    def _one_step(self) -> Tensor:
        loss = super()._one_step()
        if not self.context.budget.over:
            self._steps.take(self.module, self.step - 1)
        return loss

    def _check(self, share: float) -> None:
        """Evaluate on validation for the log only: the search keeps its last state, which α has converged to."""
        super()._check(share)
        self.best = copied_parameters(self.module) | copied_buffers(self.module)


def names_in(module: nn.Module, block: nn.Module, *, without: Collection[int]) -> list[str]:
    """Return the names in `module` of the parameters of `block`, except those whose id() is in `without`."""
    in_block = {id(p) for p in block.parameters()} - set(without)
    return [name for name, p in module.named_parameters() if id(p) in in_block]

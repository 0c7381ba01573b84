"""The training loop that methods with an optimizer share.

A training ends with its epochs or with the budget, whichever comes first; the learning-rate schedule follows whichever
is further along. It keeps the state that is best on validation, the held-out part of D_collect. It writes checkpoints,
and resumes from them after an interruption.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from metarepair.adaptation.accuracy import accuracy_on
from metarepair.adaptation.repair_data import RepairData
from metarepair.config.section import Fraction, Positive, Rate, Section
from metarepair.engine.stateless import seeded
from metarepair.engine.vectors import State, copied_buffers, copied_parameters, put_state
from metarepair.meta_training.outer import load_optimizer_state, optimizer_state
from metarepair.methods.base import MethodContext
from metarepair.methods.examples import BatchOrder, Examples
from metarepair.models.build import DeployedModel, read_tensors, save_weights
from tasks.errors import DivergedError
from tasks.keys import keyed_generator
from tasks.records import Ints, Pixels

# B images in a batch, H W C pixels, K classes

CHECKS = 20  # evaluations on validation during a training, evenly spaced
CHECKPOINT_S = 60.0
SAID_S = 8.0  # between log lines
CHECKPOINT = "training.safetensors"


class TrainingSettings(Section):
    """Settings of a training with an optimizer. A method overrides the defaults with its published numbers."""

    epochs: Positive = Field(
        100, description="Passes over all examples; the budget may end training earlier."
    )
    batch_size: Positive = Field(128, description="Examples per step.")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="sgd has Nesterov momentum 0.9.")
    rate: Rate = Field(0.1, description="Learning rate, the largest of the schedule.")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="cosine falls to 0 at the end.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(5e-4, description="L2 decay, as in torch.optim.")
    collected_share: Fraction | None = Field(
        None,
        description="Share of failures in a batch; by default their share in the union with the clean images.",
    )


@dataclass(frozen=True, kw_only=True)
class MethodBatch:
    """The examples of one step: their rows, pixels and labels, and a generator for the step's random draws."""

    rows_B: Ints
    images_BHWC_u8: Pixels
    labels_B: Tensor
    generator: np.random.Generator


def method_batch(
    examples: Examples, rows_B: Ints, generator: np.random.Generator, *, device: torch.device
) -> MethodBatch:
    """Return the given rows of `examples` as a batch."""
    return MethodBatch(
        rows_B=rows_B,
        images_BHWC_u8=examples.images(rows_B),
        labels_B=torch.from_numpy(examples.labels_N[rows_B]).to(device),
        generator=generator,
    )


def batch_order(examples: Examples, settings: TrainingSettings, seed: int) -> BatchOrder:
    """Return the order of the batches. `collected_share` is the share of the first of two sources."""
    share = settings.collected_share
    shares = None if share is None or len(examples.sizes) != 2 else (share, 1 - share)
    return BatchOrder(examples.sizes, batch_size=settings.batch_size, seed=seed, shares=shares)


class Remembers(Protocol):
    """A part of a training whose own state is saved in the checkpoints."""

    def state(self) -> State: ...
    def load(self, state: State) -> None: ...


Loss = Callable[[nn.Module, MethodBatch], Tensor]


class Training:
    """One training of a module in place; `run` does it.

    The module is evaluated on validation before the training and up to 20 times during it, evenly spaced. If
    `context.folder` is given, a checkpoint is written there about once a minute, and `run` resumes from it. The random
    draws of a step depend on the seed and the step alone, so a resumed training sees the same batches.

    Args:
        module: The module to train, usually `deployed.module`. It is changed, and requires_grad is set to True for the
            parameters that train and to False for all others.
        deployed: The deployed DNN, for its preprocessing and device.
        examples: What to learn from; a source of failures comes before one of clean images.
        data: Its `validation` chooses the state that is kept.
        context: Seed, budget, folder for checkpoints and log.
        settings: Epochs, batch size, optimizer and schedule.
        loss: Returns the loss of a batch, a scalar tensor. It is called with the module in training mode, and
            normalises the pixels itself (`deployed.normalise`).
        method: The name of the method, for log lines and errors.
        images_per_example: Forward passes per example, for the budget's count of images.
        trainable: Names of the parameters to train; by default those with requires_grad=True.
        patience: Evaluations on validation without improvement after which the training ends; None for no such end.
        remembers: A further state that the checkpoints save, such as that of the loss.
        clean_weight: Weight of the accuracy on held-out clean images, beside that on validation, in the choice of the
            state that is kept; 0 to 1.

    Attributes:
        step: Steps done so far.
        best: Parameters and buffers of the state that is best on validation, by name.
        best_accuracy: Its accuracy on validation, with that on clean images by `clean_weight`; from 0 to 1.

    Example:
        In `Method.repair`, with a `Settings` that subclasses `TrainingSettings`:

            def loss(net, batch):
                return F.cross_entropy(net(deployed.normalise(batch.images_BHWC_u8)), batch.labels_B)

            training = Training(
                deployed.module, deployed, Examples(data.learn), data, context, context.settings, loss, method=self.name
            )
            return repaired_from(self.name, training.run(), context.budget)
    """

    def __init__(
        self,
        module: nn.Module,
        deployed: DeployedModel,
        examples: Examples,
        data: RepairData,
        context: MethodContext,
        settings: TrainingSettings,
        loss: Loss,
        *,
        method: str,
        images_per_example: int = 1,
        trainable: Iterable[str] | None = None,
        patience: int | None = None,
        remembers: Remembers | None = None,
        clean_weight: float = 0.0,
    ) -> None:
        self.module, self.deployed = module, replace(deployed, module=module)
        self.examples, self.data, self.context, self.settings = examples, data, context, settings
        self.loss, self.method, self.images_per_example = loss, method, images_per_example
        self.patience, self.remembers, self.clean_weight = patience, remembers, clean_weight
        names = None if trainable is None else set(trainable)
        self.parameters: State = {
            k: p for k, p in module.named_parameters() if (p.requires_grad if names is None else k in names)
        }
        for key, parameter in module.named_parameters():
            parameter.requires_grad_(key in self.parameters)
        self.optimizer = _build_optimizer([p for p in module.parameters() if p.requires_grad], settings)
        self.order = batch_order(examples, settings, context.seed)
        self.step, self.checked, self.best_check = 0, 0, 0
        self.best: State = {}
        self.best_accuracy = -math.inf
        self._saved_at = self._said_at = time.monotonic()

    @property
    def ended_early(self) -> bool:
        """Whether the last `patience` evaluations on validation brought no improvement."""
        return self.patience is not None and self.checked - self.best_check >= self.patience

    @property
    def share(self) -> float:
        """The part of the training that is done, from 0 to 1."""
        own = self.step / (self.settings.epochs * self.order.steps_per_epoch)
        return 1.0 if self.ended_early else min(1.0, max(own, self.context.budget.share))

    def run(self) -> nn.Module:
        """Train the module, and load the state that is best on validation into it.

        The state before the training counts as well, so a training that only harms is not kept.

        Returns:
            The module, in evaluation mode.

        Raises:
            DivergedError: The loss is not finite.
        """
        self._resume()
        if not self.best:
            self._check(0.0)  # the DNN before training: a training that only harms is not kept
        while (share := self.share) < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.rate * self._rate_factor(share)
            loss = self._one_step()
            done = self.share
            if done >= 1 or int(done * CHECKS) > self.checked:
                self._refuse_not_finite(float(loss))
                self._check(done)
            self._say(loss, done)
            self._checkpoint()
        put_state(self.module, self.best)
        return self.module.eval()

    def _rate_factor(self, share: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * share)) if self.settings.schedule == "cosine" else 1.0

    def _one_step(self) -> Tensor:
        generator = keyed_generator("method-step", self.context.seed, self.step)
        batch = method_batch(
            self.examples, self.order.rows(self.step), generator, device=self.deployed.device
        )
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        with seeded(self.deployed.device, int(generator.integers(2**63))):
            loss = self.loss(self.module, batch)
            torch.autograd.backward(loss)
        self.optimizer.step()
        self.step += 1
        self.context.budget.spend(images=len(batch.rows_B) * self.images_per_example, steps=1)
        return loss.detach()

    def _check(self, share: float) -> None:
        """Evaluate the module on validation, and keep its state if it is the best so far."""
        self.checked = int(share * CHECKS)
        parameters, buffers = copied_parameters(self.module), copied_buffers(self.module)
        accuracy = accuracy_on(self.deployed, parameters, buffers, self.data.validation)
        if self.clean_weight and self.data.clean is not None:
            clean = accuracy_on(self.deployed, parameters, buffers, self.data.clean.held_out)
            accuracy = (1 - self.clean_weight) * accuracy + self.clean_weight * clean
        if accuracy > self.best_accuracy:
            self.best, self.best_accuracy, self.best_check = parameters | buffers, accuracy, self.checked

    def _say(self, loss: Tensor, share: float) -> None:
        now = time.monotonic()
        if now - self._said_at < SAID_S:
            return
        self._said_at, value, spent = now, float(loss), self.context.budget.seconds
        self._refuse_not_finite(value)
        left = spent / share - spent if share > 0 else math.nan
        self.context.say(
            f"{self.method}: {share:.0%} of the training, loss {value:.3f}, best validation {self.best_accuracy:.1%}, "
            f"{left:.0f} s left"
        )

    def _refuse_not_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"the training by {self.method} diverged: its loss became {loss} in step {self.step}. Lower "
                f"methods.{self.method}.rate."
            )

    def _checkpoint(self) -> None:
        if self.context.folder is None or time.monotonic() - self._saved_at < CHECKPOINT_S:
            return
        counts = {
            "step": self.step,
            "checked": self.checked,
            "best_check": self.best_check,
            "best_accuracy": self.best_accuracy,
        } | self.context.budget.spent
        groups: dict[str, State] = {
            "model": copied_parameters(self.module) | copied_buffers(self.module),
            "best": self.best,
            "optimizer": optimizer_state(self.optimizer, self.parameters),
            "own": self.remembers.state() if self.remembers else {},
            "count": {k: torch.tensor(v, dtype=torch.float64) for k, v in counts.items()},
        }
        tensors = {f"{group}.{key}": value for group, state in groups.items() for key, value in state.items()}
        save_weights(self.context.folder / CHECKPOINT, tensors, {})
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        """Resume from a checkpoint if the folder has one."""
        folder = self.context.folder
        if folder is None or not (folder / CHECKPOINT).is_file():
            return
        groups: dict[str, State] = {}
        for name, value in read_tensors(folder / CHECKPOINT).items():
            group, _, key = name.partition(".")
            groups.setdefault(group, {})[key] = value
        put_state(self.module, groups["model"])
        load_optimizer_state(self.optimizer, self.parameters, groups.get("optimizer", {}))
        self.best = {k: v.to(self.deployed.device) for k, v in groups["best"].items()}
        if self.remembers:
            self.remembers.load(groups.get("own", {}))
        count = {k: float(v) for k, v in groups["count"].items()}
        self.step, self.checked = int(count["step"]), int(count["checked"])
        self.best_check, self.best_accuracy = int(count["best_check"]), count["best_accuracy"]
        self.context.budget.go_on(**{key: count[key] for key in self.context.budget.spent if key in count})
        self.context.say(f"{self.method}: resumes from step {self.step}")


def _build_optimizer(parameters: list[nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=settings.rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        parameters, lr=settings.rate, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay
    )

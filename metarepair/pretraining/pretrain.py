"""Train the weights of a DNN to deploy on the clean training split, in this process or as one of several workers.

The paper picks the checkpoint by the test split (Sec. 5.1.4). We never use that split: a part of the training split is
held out to validate each epoch. The images of a step are divided among the workers; one all-reduce sums gradients,
losses and batch-norm statistics, so without batch norm and dropout N workers train the same weights as one.
The loop is also that of joint training (metarepair.pretraining.joint), whose groups make it the same with both.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarepair.config.pretraining import PretrainConfig
from metarepair.config.run import ModelConfig
from metarepair.data.lookahead import Lookahead
from metarepair.engine.stateless import seeded
from metarepair.meta_training.task_source import slots_of
from metarepair.models.build import DeployedModel, build_model
from metarepair.models.preprocessing import mean_and_std
from metarepair.pretraining.batches import BatchSource, TrainingBatch
from metarepair.pretraining.checks import check_compiler, check_data, check_precision, held_out_images
from metarepair.pretraining.state import TrainedWeights, load_checkpoint, save_checkpoint
from metarepair.runs.context import Context
from tasks.datasets import Dataset, DatasetInfo
from tasks.errors import DivergedError
from tasks.keys import keyed_generator
from tasks.records import Ints
from tasks.storage.paths import Place

# B images, P parameters, statistics and the loss

CHECKED_STEPS = 50  # steps between checks of the loss; each check waits for the GPU


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One line of the training log; accuracies are fractions, `core_seconds` those of all workers."""

    epoch: int
    loss: float
    validation_accuracy: float
    seconds: float
    core_seconds: float
    images: int
    images_per_s: float


def pretrain(
    model: ModelConfig,
    data: Dataset,
    info: DatasetInfo,
    config: PretrainConfig,
    *,
    seed: int,
    context: Context,
    folder: Place,
    on_epoch: Callable[[Epoch], None],
) -> DeployedModel:
    """Train the DNN that `model` names on `data`, and return it with the weights to keep.

    Writes a checkpoint into `folder` after each epoch, and resumes from it. Raises ConfigError for settings that do not
    suit the data set or the device, DivergedError if the loss is not finite.
    """
    devices = [context.device] if context.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        deployed = _untrained(model, info, context.device)
        pretrainer = on_clean_images(deployed, data, config, context, seed=seed)
        train_to_the_end(pretrainer, folder, on_epoch)
    return deployed


def on_clean_images(
    deployed: DeployedModel, data: Dataset, config: PretrainConfig, context: Context, *, seed: int
) -> Pretrainer:
    """Return the trainer of a DNN on `data`, a part of which validates. Raises ConfigError as `pretrain` does."""
    check_precision(config, context.device)
    check_data(config, data, pixels=deployed.input_size, workers=context.world_size)
    rows = keyed_generator("pretrain-split", seed).permutation(len(data.labels_N))
    held_out = held_out_images(config, len(rows))
    source = BatchSource(
        deployed=deployed,
        data=data,
        rows_N=rows[held_out:],
        config=config,
        seed=seed,
        rank=context.rank,
        world_size=context.world_size,
    )
    return Pretrainer(
        deployed, source, config, context, seed=seed, validation=(data, np.sort(rows[:held_out]))
    )


def train_to_the_end(pretrainer: Pretrainer, folder: Place, on_epoch: Callable[[Epoch], None]) -> None:
    """Train from the newest checkpoint in `folder` to the last epoch; the DNN then has the weights to keep.

    Rank 0 writes a checkpoint after each epoch. Raises DivergedError if the loss is not finite.
    """
    weights, module = pretrainer.weights, pretrainer.deployed.module
    try:
        load_checkpoint(folder, weights)
        while not pretrainer.done:
            on_epoch(pretrainer.run_epoch())
            if pretrainer.context.rank == 0:
                save_checkpoint(folder, weights)
    finally:
        pretrainer.close()
    module.load_state_dict(weights.kept())
    module.float().eval()


def _untrained(model: ModelConfig, info: DatasetInfo, device: torch.device) -> DeployedModel:
    """Build the DNN with the stem, input size and normalisation that it will be deployed with."""
    module = build_model(model.name, len(info.classes), stem=model.stem).to(device)
    mean, std = model.mean, model.std
    if mean is None or std is None:
        usual_mean, usual_std = mean_and_std(module, model.name, info, model.normalisation)
        mean, std = mean or usual_mean, std or usual_std
    return DeployedModel(
        name=model.name,
        module=module,
        num_classes=len(info.classes),
        mean=mean,
        std=std,
        input_size=model.input_size,
    )


class Batches(Protocol):
    """The batches of one worker, by (epoch, step)."""

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        ...

    def batch(self, key: tuple[int, int]) -> TrainingBatch: ...
    def following(self, key: tuple[int, int]) -> tuple[int, int] | None: ...


class Pretrainer:
    """One worker's DNN, optimizer and average, trained by whole epochs.

    validation: the data set and its rows that each epoch is validated on; None for none. groups: number of groups of a
    step's images over all workers, each with batch-norm statistics and dropout masks of its own; None if a worker's
    images are one group. section: the section of the settings, for messages. core_seconds: the processor time that the
    training may take over all workers; it then goes on until that is spent, however many epochs that are.
    """

    def __init__(
        self,
        deployed: DeployedModel,
        source: Batches,
        config: PretrainConfig,
        context: Context,
        *,
        seed: int,
        validation: tuple[Dataset, Ints] | None = None,
        groups: int | None = None,
        section: str = "pretrain",
        core_seconds: float | None = None,
    ) -> None:
        self.deployed, self.source, self.config = deployed, source, config
        self.context, self.seed, self.core_seconds = context, seed, core_seconds
        self.validation, self.groups, self.section = validation, groups, section
        module = deployed.module.to(torch.float64 if config.precision == "float64" else torch.float32)
        self.weights = TrainedWeights(module, config)
        self._batches = Lookahead(self.source.batch, self.source.following)
        self._counted_to = time.process_time()

    @cached_property
    def _forward(self) -> Callable[[Tensor], Tensor]:
        if not self.config.compile:
            return self.deployed.module
        check_compiler(self.context.device)
        compiled: Callable[[Tensor], Tensor] = torch.compile(self.deployed.module)
        return compiled

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or the processor time is spent."""
        if self.core_seconds is None:
            return self.weights.epochs_done >= self.config.epochs
        return self.weights.core_seconds >= self.core_seconds

    def _progress(self, epoch: int, step: int) -> float:
        """The share of the training that is done, 0 to 1."""
        if self.core_seconds is None:
            return (epoch * self.source.steps + step) / (self.config.epochs * self.source.steps)
        return self.weights.core_seconds / self.core_seconds

    def run_epoch(self) -> Epoch:
        """Run the steps of the next epoch, as many as the processor time allows, and validate the averaged weights."""
        started, epoch, steps = time.monotonic(), self.weights.epochs_done, self.source.steps
        core_seconds = self.weights.core_seconds
        # Dropout masks are keyed by the epoch, so a resumed training draws the same ones as an uninterrupted one.
        torch.manual_seed(
            int(keyed_generator("pretrain-dropout", self.seed, epoch, self.context.rank).integers(2**63))
        )
        losses: list[Tensor] = []
        for step in range(steps):
            progress = self._progress(epoch, step)
            self.weights.set_rate(self.config.rate * rate_factor(progress, self.config.warmup_fraction))
            batch = self._batches.get((epoch, step))
            if self.groups is None:
                loss, share = self._backward(batch), self.context.world_size
            else:
                loss, share = self._grouped_backward(batch, (epoch, step)), 1
            losses.append(self._sum_over_workers(loss, share=share))
            self.weights.step()
            if len(losses) % CHECKED_STEPS == 0:
                self._check_finite(losses[-CHECKED_STEPS:], epoch)
            if self.core_seconds is not None and self.done:
                break
        self._check_finite(losses[-CHECKED_STEPS:], epoch)
        images = len(losses) * self.config.batch_size
        trained_s = time.monotonic() - started
        accuracy = self._validate()
        self.weights.epoch_done(accuracy)
        return Epoch(
            epoch=epoch + 1,
            loss=float(torch.stack(losses).mean()),
            validation_accuracy=accuracy,
            seconds=time.monotonic() - started,
            core_seconds=self.weights.core_seconds - core_seconds,
            images=images,
            images_per_s=images / trained_s,
        )

    def close(self) -> None:
        """End the thread that makes batches."""
        self._batches.close()

    def _backward(self, batch: TrainingBatch) -> Tensor:
        """Compute the gradients of this worker's images; returns their part of the loss."""
        self.deployed.module.train()
        self.weights.optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in batch.parts(self.config.accumulation):
            loss = self._loss_sum(part) / self.config.batch_size
            torch.autograd.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _grouped_backward(self, batch: TrainingBatch, key: tuple[int, int]) -> Tensor:
        """As `_backward`, group by group. Each starts from the same statistics, whose updates are averaged."""
        assert self.groups is not None
        module, statistics = self.deployed.module.train(), self.weights.statistics()
        own = slots_of(self.context.rank, self.context.world_size, self.groups)
        before = [buffer.clone() for buffer in module.buffers()]
        after = [torch.zeros_like(s) for s in statistics]
        self.weights.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), dtype=self.deployed.dtype, device=self.context.device)
        for group, part in zip(own, batch.parts(len(own)) if len(own) else (), strict=True):
            _put_buffers(module, before)
            masks = keyed_generator("joint-dropout", self.seed, *key, group)
            with seeded(self.context.device, int(masks.integers(2**63))):
                one = self._loss_sum(part) / self.config.batch_size
                torch.autograd.backward(one)
            loss += one.detach()
            for total, statistic in zip(after, statistics, strict=True):
                total += statistic / self.groups
        _put_buffers(module, before)  # also what only counts batches
        for total, statistic in zip(after, statistics, strict=True):
            statistic.copy_(total)
        return loss

    def _loss_sum(self, batch: TrainingBatch) -> Tensor:
        with self._autocast():
            logits_BK = self._forward(batch.images_BCHW)
        logits_BK = logits_BK.to(self.deployed.dtype)

        def against(labels_B: Tensor) -> Tensor:
            smoothing = self.config.label_smoothing
            return F.cross_entropy(logits_BK, labels_B, label_smoothing=smoothing, reduction="sum")

        loss = against(batch.labels_B)
        return loss if batch.weight == 1 else torch.lerp(against(batch.partner_labels_B), loss, batch.weight)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.config.precision != "bfloat16":
            return nullcontext()
        return torch.autocast(self.context.device.type, torch.bfloat16)

    def _sum_over_workers(self, loss: Tensor, *, share: int) -> Tensor:
        """Sum loss, gradients and statistics / `share` over the workers, in place; returns the summed loss.

        The processor time since the last step is summed as well, so all workers know what is spent.
        """
        now = time.process_time()
        spent, self._counted_to = now - self._counted_to, now
        if self.context.world_size == 1:
            self.weights.core_seconds += spent
            return loss
        gradients, statistics = self.weights.gradients(), self.weights.statistics()
        shared = [*gradients, *(s / share for s in statistics), loss.new_tensor(spent), loss]
        sum_P = self.context.sum_over_workers(torch.cat([t.reshape(-1) for t in shared]))
        sums = torch.split(sum_P, [t.numel() for t in shared])
        for tensor, total in zip([*gradients, *statistics], sums, strict=False):
            tensor.copy_(total.view_as(tensor))
        self.weights.core_seconds += float(sums[-2])
        summed: Tensor = sums[-1].reshape(())
        return summed

    def _check_finite(self, losses: list[Tensor], epoch: int) -> None:
        """Raise DivergedError for a loss that is not finite; all workers have the same losses, so all of them stop."""
        for value in torch.stack(losses).tolist():
            if not math.isfinite(value):
                raise DivergedError(
                    f"The training loss became {value} in epoch {epoch + 1}. Lower {self.section}.rate and run again; "
                    "the last epoch's checkpoint is kept, `--restart` starts from scratch."
                )

    def _validate(self) -> float:
        """Validation accuracy of the averaged weights; each worker evaluates its share of the images."""
        if self.validation is None or not len(self.validation[1]):
            return math.nan
        data, rows_N = self.validation
        block = slots_of(self.context.rank, self.context.world_size, len(rows_N))
        rows = rows_N[block.start : block.stop]
        with self.weights.averaged():
            predicted = self.deployed.logits(data.images(rows)).argmax(1).numpy()
        right = torch.tensor([float((predicted == data.labels_N[rows]).sum())], device=self.context.device)
        return float(self.context.sum_over_workers(right)) / len(rows_N)


def _put_buffers(module: nn.Module, values: Sequence[Tensor]) -> None:
    for buffer, value in zip(module.buffers(), values, strict=True):
        buffer.copy_(value)


def rate_factor(progress: float, warm: float) -> float:
    """Share of the largest rate at `progress`, 0 to 1: a linear rise until `warm`, then half a cosine."""
    if progress < warm:
        return progress / warm
    return 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))

"""Experiences and a deployed DNN in, θ_meta out: meta-training as a loop over a Context.

Source: paper Algorithm 1, lines 2-12. Line 10-11 is one step of Adam on Σ L_s. The tasks of an episode are
shared out over the workers in contiguous blocks and differentiated one by one; their gradients, the losses and
the count are summed by one all-reduce.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarepair.batches import failure_batch, image_batch
from metarepair.checkpoint import read_state, seal
from metarepair.config import Config
from metarepair.context import Context
from metarepair.inner import Batch, FunctionalNet
from metarepair.meta_gradient import OuterLoss, TaskBatch, task_gradient
from metarepair.models.build import DeployedModel, read_tensors, save_weights
from metarepair.repair import RepairData, inner_rule, validate_repair
from metarepair.vectors import State, flatten, pairwise_sum, unflatten
from tasks.confidence import Confidence
from tasks.datasets import Dataset
from tasks.errors import DivergedError, StageError
from tasks.keys import keyed_generator
from tasks.manifest import difference
from tasks.records import Experience
from tasks.sampler import sample_task

# S tasks, B images, P parameters


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """Draws the tensors of a task; a pure function of (seed, episode, slot)."""

    deployed: DeployedModel
    experiences: Mapping[str, Experience]
    confidence: Confidence
    config: Config
    clean: Dataset | None

    def task(self, episode: int, slot: int) -> TaskBatch:
        settings = self.config.task
        drawn = sample_task(
            self.experiences,
            self.confidence,
            seed=self.config.seed,
            episode=episode,
            slot=slot,
            shots=settings.shots,
            query_size=settings.query_size,
        )
        experience = self.experiences[drawn.experience]
        return TaskBatch(
            support=failure_batch(self.deployed, experience.collect, drawn.support_rows),
            query=failure_batch(self.deployed, experience.fail, drawn.query_rows),
            clean=self._clean(episode, slot, len(drawn.query_rows)),
        )

    def _clean(self, episode: int, slot: int, size: int) -> Batch | None:
        if self.clean is None:
            return None
        generator = keyed_generator("clean", self.config.seed, episode, slot)
        size = min(size, len(self.clean.labels_N))
        rows = generator.choice(len(self.clean.labels_N), size=size, replace=False)
        return image_batch(self.deployed, self.clean.images(rows), self.clean.labels_N[rows])


def slots_of(rank: int, world_size: int, tasks: int) -> range:
    """The contiguous block of an episode's tasks that worker `rank` differentiates (may be empty)."""
    base, extra = divmod(tasks, world_size)
    start = rank * base + min(rank, extra)
    return range(start, start + base + (rank < extra))


class MetaTrainer:
    """θ and Adam's state, moved on by whole episodes."""

    def __init__(
        self, source: TaskSource, config: Config, context: Context, validation: RepairData | None = None
    ) -> None:
        self.source, self.config, self.context, self.validation = source, config, context, validation
        self.net = FunctionalNet(source.deployed.module, inner_rule(config))
        self.parameters = {k: v.clone() for k, v in self.net.parameters().items()}
        self.buffers = {k: v.clone() for k, v in self.net.buffers().items()}
        self.optimizer = torch.optim.Adam(list(self.parameters.values()), lr=config.train.outer_rate)
        self.episode, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []

    def run_episode(self) -> dict[str, float]:
        """Lines 4-11: the sum of the tasks' meta-gradients, then one outer step."""
        settings, started = self.config.train, time.monotonic()
        mine = slots_of(self.context.rank, self.context.world_size, settings.tasks)
        terms = [self._task_vector(slot) for slot in mine]
        empty = torch.zeros(sum(p.numel() for p in self.parameters.values()) + 3, dtype=self._dtype)
        local_P = pairwise_sum(terms) if terms else empty.to(self.context.device)
        total_P = self.context.sum_over_workers(local_P)
        gradient_P, (loss, accuracy, count) = total_P[:-3], total_P[-3:].tolist()
        norm = float(gradient_P.norm())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(
                f"The query loss of episode {self.episode + 1} became {loss / count} (gradient norm {norm}). "
                "Lower inner.rate or train.outer_rate, or set train.clip_norm; the last checkpoint is kept, and "
                "changed settings need --restart."
            )
        self._outer_step(gradient_P, norm)
        self.episode += 1
        seconds = time.monotonic() - started
        self.seconds += seconds
        return {
            "episode": self.episode,
            "query_loss": loss / count,
            "query_accuracy": accuracy / count,
            "gradient_norm": norm,
            "tasks_per_s": count / seconds,
        }

    @property
    def _dtype(self) -> torch.dtype:
        return next(iter(self.parameters.values())).dtype

    def _task_vector(self, slot: int) -> Tensor:
        """One task's gradient, loss, accuracy and a 1, in one vector: what is summed over tasks and workers."""
        result = task_gradient(
            self.net,
            self.parameters,
            self.buffers,
            self.source.task(self.episode, slot),
            order=self.config.train.order,
            memory=self.config.train.memory,
            outer=OuterLoss(clean_weight=self.config.train.clean_weight),
        )
        tail = torch.tensor(
            [result.loss, result.accuracy, 1.0], dtype=self._dtype, device=self.context.device
        )
        return torch.cat([flatten(result.gradient), tail])

    def _outer_step(self, gradient_P: Tensor, norm: float) -> None:
        settings = self.config.train
        if settings.clip_norm is not None and norm > settings.clip_norm:
            gradient_P = gradient_P * (settings.clip_norm / norm)
        factor = 1.0
        if settings.outer_decay == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * self.episode / settings.episodes))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.outer_rate * factor
        gradients = unflatten(gradient_P, self.parameters)
        for key, parameter in self.parameters.items():
            parameter.grad = gradients[key]
        self.optimizer.step()

    def validation_accuracy(self) -> float:
        """Accuracy on the target's held-out collected examples after one episode of repair from θ."""
        if self.validation is None:
            return math.nan
        return validate_repair(
            self.source.deployed, self.parameters, self.buffers, self.validation, self.config
        )

    def save(self, folder: Path) -> None:
        """Weights, Adam's state, episode and settings into `folder`."""
        save_weights(folder / "model.safetensors", {**self.parameters, **self.buffers}, {})
        adam = {}
        for key, parameter in self.parameters.items():
            for name, value in self.optimizer.state[parameter].items():
                adam[f"{name}.{key}"] = value
        save_weights(folder / "optimizer.safetensors", adam, {})
        state = {
            "episode": self.episode,
            "seconds": self.seconds,
            "history": self.history,
            "config": training_settings(self.config),
        }
        seal(folder, state)

    def load(self, folder: Path) -> None:
        """The inverse of `save`. Raises StageError when the checkpoint is of other settings."""
        state, settings = read_state(folder), training_settings(self.config)
        if state is None:
            raise StageError(f"{folder} is no complete checkpoint. Begin anew with --restart.")
        lines = "; ".join(difference(state["config"], settings))
        if lines:
            raise StageError(
                f"{folder.parent} holds a checkpoint of episode {state['episode']} with other settings: {lines}. Set "
                "them back, give this run another name, or begin anew with --restart."
            )
        tensors = read_tensors(folder / "model.safetensors")
        for key, value in (self.parameters | self.buffers).items():
            value.copy_(tensors[key])
        adam = read_tensors(folder / "optimizer.safetensors")
        for key, parameter in self.parameters.items():
            names = ("step", "exp_avg", "exp_avg_sq")
            self.optimizer.state[parameter] = {n: adam[f"{n}.{key}"].to(self._place(n)) for n in names}
        self.episode, self.seconds, self.history = state["episode"], state["seconds"], state["history"]

    def _place(self, name: str) -> torch.device:
        return torch.device("cpu") if name == "step" else self.context.device


def training_settings(config: Config) -> dict[str, Any]:
    """The settings that θ_meta depends on, as plain values."""
    values = config.model_dump(mode="json", include={"seed", "model", "task", "inner", "experiences"})
    skipped = {"threads"}
    return values | {"train": config.train.model_dump(mode="json", exclude=skipped)}


def meta_train(trainer: MetaTrainer) -> State:
    """Goes on from the newest checkpoint to the last episode; returns θ_meta with its buffers.

    After each round of N episodes every rank reports, and rank 0 judges a repair on validation examples.
    """
    context, settings = trainer.context, trainer.config.train
    checkpoint = context.last_checkpoint()
    if checkpoint is not None:
        trainer.load(checkpoint)
    while trainer.episode < settings.episodes:
        metrics = trainer.run_episode()
        trainer.history.append({k: v for k, v in metrics.items() if k != "tasks_per_s"})
        if trainer.episode % settings.round_episodes == 0 or trainer.episode == settings.episodes:
            if context.rank == 0 and trainer.validation is not None:
                accuracy = trainer.validation_accuracy()
                metrics["validation_accuracy"] = trainer.history[-1]["validation_accuracy"] = accuracy
            context.report(metrics, trainer.save)
    return trainer.parameters | trainer.buffers

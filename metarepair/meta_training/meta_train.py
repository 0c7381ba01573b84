"""Trains θ_meta on the experiences of a deployed DNN, on one worker or several.

The tasks of an episode are divided among the workers in contiguous blocks, and each worker differentiates its tasks
one by one. One all-reduce then sums gradients, losses and the number of tasks. The next task's batches are prepared
while the current task is differentiated.
Source: paper Algorithm 1, lines 2-12. Lines 10-11 are one step of the outer optimizer on Σ L_s, not a full
minimisation.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from metarepair.adaptation.accuracy import accuracy_on
from metarepair.adaptation.meta_test import Start, inner_rule, walk
from metarepair.adaptation.repair_data import RepairData
from metarepair.config.run import Config
from metarepair.config.section import in_yaml
from metarepair.data.lookahead import Lookahead
from metarepair.engine.inner import FunctionalNet
from metarepair.engine.memory import MemoryPlan, plan_for
from metarepair.engine.meta_gradient import task_gradient
from metarepair.engine.passes import Passes
from metarepair.engine.types import TaskBatch
from metarepair.engine.vectors import State, flatten, pairwise_sum, unflatten
from metarepair.meta_training.outer import (
    all_finite,
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
    outer_loss,
    outer_order,
    outer_rate,
    outer_step,
)
from metarepair.meta_training.task_source import TaskSource, slots_of
from metarepair.models.build import read_tensors, save_weights
from metarepair.runs.checkpoint import read_state, write_state
from metarepair.runs.context import Context
from metarepair.runs.layout import RATES
from tasks.errors import DivergedError, StageError
from tasks.storage.paths import Place
from tasks.storage.settings import Settings, changes

# P parameters and rate factors

logger = logging.getLogger(__name__)
COSTS = ("core_seconds", "forward_images", "backward_images")
FACTOR = "factor "  # no parameter's name has a space


class MetaTrainer:
    """Holds θ, the factors of learned rates and the optimizer's state, and updates them episode by episode."""

    def __init__(
        self, source: TaskSource, config: Config, context: Context, validation: RepairData | None = None
    ) -> None:
        self.source, self.config, self.context, self.validation = source, config, context, validation
        self.net = FunctionalNet(
            source.deployed.module, inner_rule(config), bf16=config.train.precision == "bfloat16"
        )
        self.parameters = {k: v.clone() for k, v in self.net.parameters().items()}
        self.buffers = {k: v.clone() for k, v in self.net.buffers().items()}
        self.factors = self.net.rate_factors()
        trained = {k: self.parameters[k] for k in self.net.trainable}
        self.passes, self._counted = Passes(), (0, 0)
        self.passes.watch(source.deployed.module)
        self._counted_to = time.process_time()
        self.cost: dict[str, float] = dict.fromkeys(COSTS, 0)
        self.core_seconds = config.core_seconds(parts=len(config.trainings))
        self.learned = trained | {FACTOR + k: v for k, v in self.factors.items()}
        self.optimizer = build_optimizer(config.train, self.learned)
        self.episode, self.skipped, self.seconds = 0, 0, 0.0
        self.history: list[dict[str, float]] = []
        self.slots = slots_of(context.rank, context.world_size, config.train.tasks)
        self._tasks = Lookahead(lambda key: source.task(*key), self._following)
        self._plan: MemoryPlan | None = None

    def run_episode(self) -> dict[str, float]:
        """Run one episode: sum the meta-gradients of its tasks, then take one outer step (lines 4-11).

        Returns the episode's metrics with its speed, and appends the metrics to the history. An episode whose loss or
        gradient is not finite takes no step and is counted as skipped. Raises DivergedError if more than
        train.max_skipped episodes are skipped, if all of them are, or if θ is not finite after a step.
        """
        started = time.monotonic()
        terms = [self._task_vector(slot) for slot in self.slots]  # lines 6-9
        empty = torch.zeros(sum(v.numel() for v in self.learned.values()) + 3, dtype=self._dtype)
        local_P = pairwise_sum(terms) if terms else empty.to(self.context.device)
        spent = local_P.new_tensor(self._spent())
        total_P = self.context.sum_over_workers(torch.cat([local_P, spent]))  # line 10: the gradient of Σ L_s
        gradient_P, (loss, accuracy, count) = total_P[:-6], total_P[-6:-3].tolist()
        self._add_cost(total_P[-3:])
        norm = float(gradient_P.norm())
        if math.isfinite(loss) and math.isfinite(norm):
            self._outer_step(gradient_P, norm)  # lines 10-11
            metrics = {
                "query_loss": loss / count,
                "query_accuracy": accuracy / count,
                "gradient_norm": norm,
            }
        else:
            self._skip(loss / count, norm)
            metrics = {"skipped": float(self.skipped)}
        self.episode += 1
        seconds = time.monotonic() - started
        self.seconds += seconds
        self.history.append({"episode": self.episode, **metrics})
        speed = {"tasks_per_s": count / seconds, "episodes_per_s": 1 / seconds}
        return self.history[-1] | speed | {"core_seconds": self.cost["core_seconds"]}

    def _spent(self) -> tuple[float, ...]:
        """This worker's processor time, forward and backward images since the last call."""
        now, counted = time.process_time(), (self.passes.forward, self.passes.backward)
        spent = now - self._counted_to, *(a - b for a, b in zip(counted, self._counted, strict=True))
        self._counted_to, self._counted = now, counted
        return spent

    def count_spent(self) -> float:
        """Add what was spent since the last episode, such as on validation; every worker calls it equally often.

        Returns the core-seconds so far.
        """
        spent = torch.tensor(self._spent(), dtype=self._dtype, device=self.context.device)
        self._add_cost(self.context.sum_over_workers(spent))
        return self.cost["core_seconds"]

    def _add_cost(self, spent_by_all: Tensor) -> None:
        core_seconds, *images = spent_by_all.tolist()
        more = zip(COSTS, (core_seconds, *map(round, images)), strict=True)
        self.cost = {key: self.cost[key] + value for key, value in more}

    @property
    def done(self) -> bool:
        """Whether all episodes are done, or the processor time is spent."""
        return is_trained(self.config, self.episode, self.cost["core_seconds"])

    @property
    def _position(self) -> float:
        """The episode that the schedules are at: with a budget, its spent share of all episodes."""
        if self.core_seconds is None:
            return self.episode
        return self.config.train.episodes * min(1.0, self.cost["core_seconds"] / self.core_seconds)

    def close(self) -> None:
        """End the thread that prepares batches."""
        self._tasks.close()

    @property
    def _dtype(self) -> torch.dtype:
        return next(iter(self.learned.values())).dtype

    @property
    def memory(self) -> str:
        """How many steps keep their graphs, and why, in words; empty before the first task."""
        return "" if self._plan is None else self._plan.reason

    def _following(self, key: tuple[int, int]) -> tuple[int, int] | None:
        """The (episode, slot) that this rank differentiates next."""
        episode, slot = key
        if slot + 1 in self.slots:
            return episode, slot + 1
        more = self.core_seconds is not None or episode + 1 < self.config.train.episodes
        return (episode + 1, self.slots[0]) if more else None

    def _planned(self, task: TaskBatch) -> int:
        """The number of last inner steps that keep their graphs: as set, or measured once on the first task."""
        if self._plan is None:
            settings, processes = self.config.train, self.context.world_size
            with self.passes.uncounted():  # a resumed training plans again, and has done no more for it
                self._plan = plan_for(
                    self.net,
                    self.parameters,
                    self.buffers,
                    task.support,
                    settings.memory,
                    settings.order,
                    processes=processes,
                )
            if self.context.rank == 0:
                logger.info(f"memory: {self._plan.reason}")
        return self._plan.kept

    def _task_vector(self, slot: int) -> Tensor:
        """One task's gradient, loss, accuracy and a 1 (the count) as one vector, for the sum over tasks and workers."""
        settings, task = self.config.train, self._tasks.get((self.episode, slot))
        result = task_gradient(
            self.net,
            self.parameters,
            self.buffers,
            task,
            order=outer_order(settings, self._position),
            memory=self._planned(task),
            outer=outer_loss(settings, self._position, self.net.rule.steps),
            factors=self.factors,
            theta_on_host=settings.theta_on_host,
        )
        tail = torch.tensor(
            [result.loss, result.accuracy, 1.0], dtype=self._dtype, device=self.context.device
        )
        return torch.cat(
            [flatten(result.gradient | {FACTOR + k: v for k, v in result.factors.items()}), tail]
        )

    def _skip(self, loss: float, norm: float) -> None:
        self.skipped += 1
        limit = self.config.train.max_skipped
        all_skipped = self.core_seconds is None and self.skipped == self.config.train.episodes
        if self.skipped > limit or all_skipped:
            raise DivergedError(
                f"The query loss of episode {self.episode + 1} became {loss:.4g} (gradient norm {norm:.4g}), and "
                f"{self.skipped} episodes were skipped for such values (train.max_skipped={limit}). Lower inner.rate "
                "or train.outer_rate, or set train.clip_norm; the last checkpoint is kept, and changed settings need "
                "--restart."
            )

    def _outer_step(self, gradient_P: Tensor, norm: float) -> None:
        settings = self.config.train
        if settings.clip_norm is not None and norm > settings.clip_norm:
            gradient_P = gradient_P * (settings.clip_norm / norm)
        gradients = unflatten(gradient_P, self.learned)
        outer_step(self.optimizer, self.learned, gradients, outer_rate(settings, self._position))
        # All ranks hold the same bits, so either all of them stop here or none does.
        if not all_finite(self.learned):
            raise DivergedError(
                f"θ is not finite after the outer step of episode {self.episode + 1}, while loss and gradient were "
                f"finite (norm {norm:.3g}). The cause is the outer optimizer, {settings.outer_optimizer} with "
                f"outer_options={in_yaml(settings.outer_options)}, outer_rate={settings.outer_rate}. Change these in "
                "train; the last checkpoint is kept, and changed settings need --restart."
            )

    def validation_accuracy(self) -> float:
        """Accuracy on the target's validation part after one episode of repair from θ, at `inner.rate`."""
        if self.validation is None:
            return math.nan
        deployed, data, config = self.source.deployed, self.validation, self.config
        start = Start(parameters=self.parameters, buffers=self.buffers, factors=self.factors)
        *_, end = walk(deployed, start, data, config, seed=0, rate=config.inner.rate, episodes=1)
        return accuracy_on(deployed, end.parameters, end.buffers, data.validation)

    def save(self, folder: Path) -> None:
        """Write weights, the optimizer's state, the episode and the settings into `folder`."""
        save_weights(folder / "model.safetensors", {**self.parameters, **self.buffers}, {})
        save_weights(folder / "optimizer.safetensors", optimizer_state(self.optimizer, self.learned), {})
        if self.factors:
            save_weights(folder / RATES, self.factors, {})
        state = {
            "episode": self.episode,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "cost": self.cost,
            "memory": self.memory,
            "history": self.history,
            "config": training_settings(self.config),
        }
        write_state(folder, state)

    def load(self, folder: Place, *, other_settings: bool = False) -> None:
        """Restore what `save` wrote.

        Raises StageError if the checkpoint is not complete, or has other settings and `other_settings` is False.
        """
        state, settings = read_state(folder), training_settings(self.config)
        if state is None:
            raise StageError(f"{folder} is not a complete checkpoint. Start over with --restart.")
        lines = "" if other_settings else "; ".join(changes(state["config"], settings))
        if lines:
            raise StageError(
                f"{folder.parent} holds a checkpoint of episode {state['episode']} with other settings: {lines}. Set "
                "them back, give this run another name, or start over with --restart."
            )
        tensors = read_tensors(folder / "model.safetensors")
        for key, value in (self.parameters | self.buffers).items():
            value.copy_(tensors[key])
        for key, value in (read_tensors(folder / RATES) if self.factors else {}).items():
            self.factors[key].copy_(value)
        load_optimizer_state(self.optimizer, self.learned, read_tensors(folder / "optimizer.safetensors"))
        self.episode, self.skipped, self.seconds = state["episode"], state["skipped"], state["seconds"]
        self.history, self.cost = state["history"], self.cost | state.get("cost", {})


def is_trained(config: Config, episodes: int, core_seconds: float) -> bool:
    """Whether a target's meta-training is over after these episodes, or after this processor time if that decides."""
    budget = config.core_seconds(parts=len(config.trainings))
    return episodes >= config.train.episodes if budget is None else core_seconds >= budget


def training_settings(config: Config) -> Settings:
    """The settings that θ_meta depends on, as plain values; `memory` is left out, as it only changes the rounding."""
    values = config.settings(include={"seed", "model", "task", "inner", "experiences"})
    values |= config.budget_settings(parts=len(config.trainings))
    skipped = {"threads", "memory", "theta_on_host", "max_skipped", "kept_checkpoints"}
    return values | {"train": config.train.settings(exclude=skipped)}


def meta_train(trainer: MetaTrainer) -> State:
    """Train from the newest checkpoint, if there is one, to the last episode; return θ_meta with its buffers.

    After each round of N episodes every rank reports, and rank 0 measures a repair on validation examples.
    """
    context = trainer.context
    checkpoint = context.last_checkpoint()
    if checkpoint is not None:
        trainer.load(checkpoint)
    context.share([*trainer.learned.values(), *trainer.buffers.values()])
    reported = trainer.episode
    try:
        for metrics in rounds(trainer):
            context.report(metrics, trainer.save, trainer.history[reported:])
            reported = trainer.episode
    finally:
        trainer.close()
        context.finish()
    return trainer.parameters | trainer.buffers


def rounds(trainer: MetaTrainer) -> Iterator[dict[str, float]]:
    """Train from the trainer's episode to the last one (lines 2-12); yield the metrics of each round of N episodes."""
    settings = trainer.config.train
    while not trainer.done:
        metrics = trainer.run_episode()
        if trainer.episode % settings.round_episodes == 0 or trainer.done:
            if trainer.context.rank == 0 and trainer.validation is not None:
                accuracy = trainer.validation_accuracy()
                metrics["validation_accuracy"] = trainer.history[-1]["validation_accuracy"] = accuracy
            metrics["core_seconds"] = trainer.count_spent()
            yield metrics

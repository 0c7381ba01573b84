"""Run the pieces of a stage in this process. `distributed.stages.executor` runs them on Ray instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch

from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings
from metarepair.methods.base import map_here
from metarepair.runs.layout import Run
from metarepair.stages.joint import train_with_progress
from metarepair.stages.train import train_here
from tasks.errors import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Run, Config, Item, Surroundings], object]


class Executor(Protocol):
    """Runs the pieces of a stage. A UserError of a piece is raised as the piece raised it."""

    @property
    def trainings_at_once(self) -> int:
        """The number of meta-trainings that can run at the same time; at least 1."""
        ...

    @property
    def repairs_at_once(self) -> int:
        """The number of repairs that can run at the same time; at least 1."""
        ...

    def map(
        self, build: Callable[[], Callable[[Item], Result]], items: Sequence[Item], *, one_cpu: bool = False
    ) -> Iterator[tuple[Item, Result]]:
        """Yield (item, result) in the order of completion; `build` creates the worker where it runs.

        one_cpu: each worker takes one CPU and no GPU, whatever the settings give a training worker.
        """
        ...

    def map_in_order(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Yield the results of `work` in the order of the items."""
        ...

    def call(self, work: Work[Item], run: Run, item: Item, here: Surroundings) -> None:
        """Call `work(run, config, item, here)`; in another process, with the surroundings loaded there."""
        ...

    def train(self, run: Run, target: str, device: torch.device) -> None:
        """Meta-train for `target`, from the newest checkpoint to the last episode."""
        ...

    def train_jointly(self, run: Run, device: torch.device) -> None:
        """Train jointly, from the newest checkpoint to the last round."""
        ...


ExecutorOf = Callable[[Config], Executor]


class InProcess:
    """Runs one piece after the other, in this process and without Ray."""

    trainings_at_once = repairs_at_once = 1

    def __init__(self, config: Config) -> None:
        self.config = config

    def map(
        self,
        build: Callable[[], Callable[[Item], Result]],
        items: Sequence[Item],
        *,
        one_cpu: bool = False,  # noqa: ARG002 - nothing is reserved in this process
    ) -> Iterator[tuple[Item, Result]]:
        """As `Executor.map`; the worker is not built if there are no items."""
        if not items:
            return
        work = build()
        for item in items:
            yield item, work(item)

    def map_in_order(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """As `Executor.map_in_order`."""
        return map_here(work, items)

    def call(self, work: Work[Item], run: Run, item: Item, here: Surroundings) -> None:
        """As `Executor.call`, with the given surroundings."""
        work(run, self.config, item, here)

    def train(self, run: Run, target: str, device: torch.device) -> None:
        """As `Executor.train`."""
        train_here(run, self.config, target, device)

    def train_jointly(self, run: Run, device: torch.device) -> None:
        """As `Executor.train_jointly`."""
        train_with_progress(run, self.config, device)


def in_process(config: Config) -> InProcess:
    """The executor for `workers: 0`. Raises ConfigError if the settings ask for workers."""
    if config.workers > 0:
        raise ConfigError(
            f"workers={config.workers} runs on Ray, but no executor was given. Pass "
            "executor=distributed.stages.executor.executor_for, or set workers=0."
        )
    return InProcess(config)

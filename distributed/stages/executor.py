"""Run the pieces of a stage on Ray: actors, tasks and Ray Train groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch

from distributed.on_ray.cluster import trainings_that_fit, worker_resources, workers_that_fit
from distributed.on_ray.corruption_plugins import build_checked, plugins_of
from distributed.on_ray.on_worker import call_on_worker, map_on_workers
from distributed.on_ray.pool import ONE_CPU, map_items
from distributed.stages.pretrain import train_jointly_on_ray
from distributed.stages.train import train_on_ray
from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings, load_surroundings
from metarepair.runs.layout import Run, run_at
from metarepair.stages.executor import Executor, Work, in_process
from tasks.storage.paths import place

Item = TypeVar("Item")
Result = TypeVar("Result")


class OnRay:
    """The `metarepair.stages.executor.Executor` of the connected cluster."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def trainings_at_once(self) -> int:
        """The number of trainings of `workers` workers that fit on the cluster at once."""
        return trainings_that_fit(self.config)

    @property
    def repairs_at_once(self) -> int:
        """The number of single workers that fit on the cluster at once."""
        return workers_that_fit(self.config)

    def map(
        self, build: Callable[[], Callable[[Item], Result]], items: Sequence[Item], *, one_cpu: bool = False
    ) -> Iterator[tuple[Item, Result]]:
        """As `Executor.map`, on `workers` actors."""
        resources = ONE_CPU if one_cpu else worker_resources(self.config)
        checked = partial(build_checked, plugins_of(self.config), build)
        return map_items(checked, items, workers=self.config.workers, resources=resources)

    def map_in_order(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """As `Executor.map_in_order`, on as many actors as the cluster has room for."""
        return map_on_workers(self.config, work, items)

    def call(self, work: Work[Item], run: Run, item: Item, here: Surroundings) -> None:  # noqa: ARG002 - loaded again where the task runs
        """As `Executor.call`, in a Ray task that loads the surroundings itself."""
        call_on_worker(_call, self.config, work, str(run.root), item)

    def train(self, run: Run, target: str, device: torch.device) -> None:  # noqa: ARG002 - each worker has its own
        """As `Executor.train`, on a Ray Train group."""
        train_on_ray(run, self.config, target)

    def train_jointly(self, run: Run, device: torch.device) -> None:  # noqa: ARG002 - each worker has its own
        """As `Executor.train_jointly`, on a Ray Train group."""
        train_jointly_on_ray(run, self.config)


def _call(config: Config, work: Work[Item], root: str, item: Item) -> None:
    work(run_at(place(root), config), config, item, load_surroundings(config))


def executor_for(config: Config) -> Executor:
    """The executor of a configuration: this process with `workers: 0`, otherwise Ray."""
    return in_process(config) if config.workers == 0 else OnRay(config)

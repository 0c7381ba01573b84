"""What a training loop sees of its surroundings: rank, device, sum, report, checkpoint. One process here.

`distributed.on_ray.context` implements the same on Ray Train. What either leaves on storage is the same, too:

    <folder>/checkpoints/checkpoint-NNNNNN/   the newest few, written while the training goes on
    <folder>/tensorboard/                     events of every episode
    <folder>/last_report.json                 the newest round's metrics, for those who watch
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from metarepair.runs.checkpoint import Checkpoints
from metarepair.runs.tensorboard import EventLog
from tasks.storage.paths import Place, write_text

Metrics = Mapping[str, float]
LAST_REPORT = "last_report.json"


class Context(Protocol):
    """The surroundings of a training loop."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def sum_over_workers(self, values: Tensor) -> Tensor:
        """The sum of `values` over all workers, on every worker."""
        ...

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Gives `tensors` of every rank the values that they have on rank 0."""
        ...

    def last_checkpoint(self) -> Place | None:
        """A folder with the newest complete checkpoint, the same on every rank; None at the start."""
        ...

    def report(self, metrics: Metrics, write: Callable[[Path], None], episodes: Sequence[Metrics]) -> None:
        """Called equally often by every rank; on rank 0 `write(folder)` fills a new checkpoint.

        metrics: of the round, `episode` among them; episodes: the metrics of each of its episodes.
        """
        ...

    def finish(self) -> None:
        """Waits until all that was reported is on storage."""
        ...


class Journal:
    """What rank 0 of a training leaves in `folder`."""

    def __init__(self, folder: Place, *, kept: int | None) -> None:
        self.folder = folder
        self.checkpoints = Checkpoints(folder / "checkpoints", kept=kept)
        self._events = EventLog(folder / "tensorboard")

    def record(self, metrics: Metrics, write: Callable[[Path], None], episodes: Sequence[Metrics]) -> None:
        """A checkpoint first, then what tells of it. Raises StorageError as Checkpoints.write does."""
        self._events.add(episodes)

        def tell() -> None:
            self._events.publish()
            write_last_report(self.folder, metrics)

        self.checkpoints.write(int(metrics["episode"]), write, then=tell)

    def finish(self) -> None:
        """Waits until all of it is there. Raises StorageError when it could not be written."""
        try:
            self.checkpoints.finish()
        finally:
            self._events.close()


@dataclass(kw_only=True)
class LocalContext:
    """One process without Ray; the newest `kept` checkpoints stay (None: all)."""

    folder: Place
    device: torch.device
    on_report: Callable[[Metrics], None] = lambda _: None
    rank: int = 0
    world_size: int = 1
    kept: int | None = 2

    @cached_property
    def journal(self) -> Journal:
        return Journal(self.folder, kept=self.kept)

    def sum_over_workers(self, values: Tensor) -> Tensor:
        return values

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Nothing: there is one rank."""

    def last_checkpoint(self) -> Place | None:
        return self.journal.checkpoints.newest()

    def report(self, metrics: Metrics, write: Callable[[Path], None], episodes: Sequence[Metrics]) -> None:
        self.journal.record(metrics, write, episodes)
        self.on_report(metrics)

    def finish(self) -> None:
        self.journal.finish()


def write_last_report(folder: Place, metrics: Metrics) -> None:
    """Leaves the newest metrics where another process can see them."""
    write_text(folder / LAST_REPORT, json.dumps(dict(metrics)))


def last_report(folder: Place) -> Metrics | None:
    """What `write_last_report` left, None before the first."""
    try:
        metrics: dict[str, float] = json.loads((folder / LAST_REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return metrics

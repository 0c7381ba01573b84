"""The context of a training loop (rank, device, sum, report, checkpoint), implemented here for one process.

`distributed.on_ray.context` implements it on Ray Train. Both leave the same files on storage:

    <folder>/checkpoints/checkpoint-NNNNNN/   the newest few, written while training continues
    <folder>/last_report.json                 the newest round's metrics, for progress lines, `status` and trackers
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from metarepair.runs.checkpoint import STATE, Checkpoints
from tasks.storage.paths import Place, find, read_json, write_text

Metrics = Mapping[str, float]
Entry = tuple[int, Metrics]  # a step and its metrics
LAST_REPORT = "last_report.json"


class Context(Protocol):
    """What a training loop sees of the process, or the group of processes, that it runs in."""

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
        """Set `tensors` on every rank to their values on rank 0."""
        ...

    def last_checkpoint(self) -> Place | None:
        """The folder of the newest complete checkpoint, the same on every rank, or None."""
        ...

    def report(self, metrics: Metrics, write: Callable[[Path], None], episodes: Sequence[Metrics]) -> None:
        """Report a round. Every rank calls this equally often; on rank 0 `write(folder)` fills a new checkpoint.

        metrics: those of the round, including `episode`. episodes: the metrics of each of its episodes.
        """
        ...

    def finish(self) -> None:
        """Wait until everything reported is on storage."""
        ...


class Journal:
    """Writes the checkpoints and the last report of a training to `folder`, from rank 0."""

    def __init__(self, folder: Place, *, kept: int | None) -> None:
        self.folder = folder
        self.checkpoints = Checkpoints(folder / "checkpoints", kept=kept)

    def record(self, metrics: Metrics, write: Callable[[Path], None]) -> None:
        """Write a checkpoint, then the report of it. Raises StorageError as Checkpoints.write does."""
        self.checkpoints.write(
            int(metrics["episode"]), write, then=lambda: write_last_report(self.folder, metrics)
        )

    def finish(self) -> None:
        """Wait until everything is written. Raises StorageError if it could not be."""
        self.checkpoints.finish()


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
        """Do nothing: there is only one rank."""

    def last_checkpoint(self) -> Place | None:
        return self.journal.checkpoints.newest()

    def report(self, metrics: Metrics, write: Callable[[Path], None], episodes: Sequence[Metrics]) -> None:  # noqa: ARG002 - the checkpoint has them
        self.journal.record(metrics, write)
        self.on_report(metrics)

    def finish(self) -> None:
        self.journal.finish()


def write_last_report(folder: Place, metrics: Metrics) -> None:
    """Write the newest metrics to where another process can read them."""
    write_text(folder / LAST_REPORT, json.dumps(dict(metrics)))


def last_report(folder: Place) -> Metrics | None:
    """The metrics that `write_last_report` wrote, or None before the first."""
    try:
        metrics: dict[str, float] = read_json(folder / LAST_REPORT)
    except (OSError, ValueError):
        return None
    return metrics


def episodes_after(folder: Place, episode: int) -> list[Entry]:
    """The metrics of each episode after `episode` that the newest checkpoint of a training knows."""
    report = last_report(folder)
    if report is None or report["episode"] <= episode:
        return []
    for checkpoint in reversed(find(folder / "checkpoints", "checkpoint-*")):
        with suppress(OSError, ValueError):  # it is being written or deleted
            history: list[dict[str, float]] = read_json(checkpoint / STATE)["history"]
            return [entry_of(one, "episode") for one in history if one["episode"] > episode]
    return []


def entry_of(metrics: Metrics, step: str) -> Entry:
    """Metrics, of which one is the step, as a tracker takes them."""
    return int(metrics[step]), {name: value for name, value in metrics.items() if name != step}

"""What a training loop sees of its surroundings: rank, device, sum, report, checkpoint. One process here.

`distributed.context` implements the same on Ray Train.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from metarepair.checkpoint import newest_checkpoint, publish
from tasks.storage import Place, find, remove_tree, write_text

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

    def last_checkpoint(self) -> Place | None:
        """A folder with the newest complete checkpoint, None at the start."""
        ...

    def report(self, metrics: Metrics, write: Callable[[Path], None]) -> None:
        """Called equally often by every rank; on rank 0 `write(folder)` fills a new checkpoint."""
        ...


@dataclass(kw_only=True)
class LocalContext:
    """One process without Ray; checkpoints are `folder/checkpoint-NNNNNN`, the newest two are kept."""

    folder: Place
    device: torch.device
    on_report: Callable[[Metrics], None] = lambda _: None
    rank: int = 0
    world_size: int = 1
    kept: int = 2

    def sum_over_workers(self, values: Tensor) -> Tensor:
        return values

    def last_checkpoint(self) -> Place | None:
        return newest_checkpoint(self.folder.parent)  # maybe begun on Ray

    def report(self, metrics: Metrics, write: Callable[[Path], None]) -> None:
        final = self.folder / f"checkpoint-{int(metrics['episode']):06d}"
        with tempfile.TemporaryDirectory() as part:
            write(Path(part))
            publish(Path(part), final)
        for old in find(self.folder, "checkpoint-*")[: -self.kept]:
            remove_tree(old)
        self.on_report(metrics)


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

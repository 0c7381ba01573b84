"""The training loop's surroundings on Ray Train: rank, device, all-reduce, report, checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.train import Checkpoint
from torch import Tensor

from metarepair.checkpoint import newest_checkpoint
from metarepair.context import Metrics, write_last_report
from tasks.storage import Place


@dataclass(kw_only=True)
class RayContext:
    """One rank of a Ray Train worker group."""

    folder: Place

    @property
    def rank(self) -> int:
        return int(ray.train.get_context().get_world_rank())

    @property
    def world_size(self) -> int:
        return int(ray.train.get_context().get_world_size())

    @property
    def device(self) -> torch.device:
        return torch.device(ray.train.torch.get_device())

    def sum_over_workers(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def last_checkpoint(self) -> Place | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:  # maybe begun without Ray
            return newest_checkpoint(self.folder)
        return Path(checkpoint.to_directory())

    def report(self, metrics: Metrics, write: Callable[[Path], None]) -> None:
        if self.rank != 0:
            ray.train.report(dict(metrics))
            return
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report(dict(metrics), checkpoint=Checkpoint.from_directory(folder))
        write_last_report(self.folder, metrics)

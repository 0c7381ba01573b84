"""The training loop's context on Ray Train: rank, device, all-reduce, report, checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ray.train
import ray.train.torch
import torch
import torch.distributed
from torch import Tensor

from distributed.on_ray.metrics import count_round
from metarepair.runs.context import Journal, Metrics
from tasks.storage.paths import Place, place

BUCKET_BYTES = 1 << 25  # of one bucket of an all-reduce; all buckets are in flight together


@dataclass(kw_only=True)
class RayContext:
    """One rank of a Ray Train worker group. Ray Train receives only the metrics; checkpoints are our own.

    So checkpoints have one layout with and without Ray, are published while training continues, and the newest
    complete one is found whoever wrote it.
    """

    folder: Place
    kept: int | None = 2

    @cached_property
    def journal(self) -> Journal:
        return Journal(self.folder, kept=self.kept)

    @cached_property
    def rank(self) -> int:
        return int(ray.train.get_context().get_world_rank())

    @cached_property
    def world_size(self) -> int:
        return int(ray.train.get_context().get_world_size())

    @cached_property
    def device(self) -> torch.device:
        return torch.device(ray.train.torch.get_device())

    def sum_over_workers(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            buckets = torch.split(values, BUCKET_BYTES // values.element_size())
            under_way = [torch.distributed.all_reduce(bucket, async_op=True) for bucket in buckets]
            for work in under_way:
                work.wait()
        return values

    def share(self, tensors: Sequence[Tensor]) -> None:
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def last_checkpoint(self) -> Place | None:
        # Rank 0 chooses for all: a file damaged on one node must not make the ranks resume from different checkpoints.
        newest = self.journal.checkpoints.newest() if self.rank == 0 else None
        chosen = [None if newest is None else str(newest)]
        if self.world_size > 1:
            torch.distributed.broadcast_object_list(chosen, src=0, device=self.device)
        return None if chosen[0] is None else place(chosen[0])

    def report(self, metrics: Metrics, write: Callable[[Path], None], episodes: Sequence[Metrics]) -> None:
        if self.rank == 0:
            self.journal.record(metrics, write)
            count_round(metrics, episodes)
        ray.train.report(dict(metrics))

    def finish(self) -> None:
        if self.rank == 0:
            self.journal.finish()

"""Several ranks of a pretraining or a joint training in threads of this process, whose sums work as an all-reduce."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metarepair.pretraining.pretrain import Epoch, Pretrainer
from waiting import LIMIT_S


def trained(made: Pretrainer) -> list[Epoch]:
    """Run all remaining epochs."""
    epochs = []
    while not made.done:
        epochs.append(made.run_epoch())
    made.close()
    return epochs


def parameters(made: Pretrainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in made.weights.parameters.values()])


@dataclass
class Crew:
    """The ranks, and their vectors of the current sum."""

    world_size: int
    vectors: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.world_size)

    def train(self, make: Callable[[Any], Pretrainer]) -> list[tuple[Pretrainer, list[Epoch]]]:
        ranks = [make(Rank(self, rank)) for rank in range(self.world_size)]
        found: dict[int, list[Epoch]] = {}
        threads = [
            threading.Thread(target=lambda rank=rank: found.__setitem__(rank, trained(ranks[rank])))
            for rank in range(self.world_size)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [(ranks[rank], found[rank]) for rank in range(self.world_size)]


@dataclass
class Rank:
    """The context of one rank."""

    crew: Crew
    rank: int
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - never changed

    @property
    def world_size(self) -> int:
        return self.crew.world_size

    def sum_over_workers(self, values: Tensor) -> Tensor:
        self.crew.vectors[self.rank] = values
        self.crew.barrier.wait(LIMIT_S)
        total = torch.stack([self.crew.vectors[rank] for rank in range(self.world_size)]).sum(0)
        self.crew.barrier.wait(LIMIT_S)
        return total

"""What the engine works with: the rule of the inner loop, and the batches of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from metarepair.engine.checks import check_choice, check_number, check_parts

# B images, C H W

BatchNormMode = Literal["frozen", "adapt", "batch"]


@dataclass(frozen=True, kw_only=True)
class InnerRule:
    """How a task adapts: `steps` of SGD, and what support batches do to batch-norm statistics.

    frozen: stored statistics normalise, nothing updates them. adapt: the support is normalised by its own batch,
    which also moves the stored statistics by `batch_norm_momentum`; queries use the stored ones. batch: support
    and query are normalised by their own batch (the original MAML code; meta-training only).

    momentum, weight_decay: as in torch.optim.SGD. parts: what is adapted (see engine/adapted.py); ANIL is ("head",).
    learned_rates: every adapted tensor has a factor on `rate` per step, meta-learned with θ (MAML++'s LSLR,
    Antoniou et al. 2019, Sec. 4). dropout: support batches go through dropout and drop path, with masks keyed by
    task and step; queries never do.
    """

    steps: int
    rate: float
    batch_norm: BatchNormMode
    batch_norm_momentum: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    parts: tuple[str, ...] = ("*",)
    learned_rates: bool = False
    dropout: bool = False

    def __post_init__(self) -> None:
        check_number("steps", self.steps, "a whole number from 1", whole=True, least=1)
        check_number("rate", self.rate, "a number above 0", above=0)
        check_choice("batch_norm", self.batch_norm, get_args(BatchNormMode))
        momentum = self.batch_norm_momentum
        check_number("batch_norm_momentum", momentum, "above 0 and at most 1", above=0, most=1)
        check_number("momentum", self.momentum, "from 0 to below 1", least=0, below=1)
        check_number("weight_decay", self.weight_decay, "a number from 0", least=0)
        check_parts(self.parts)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Normalised images [B, C, H, W] and their labels [B]; `seed` keys the dropout masks of a support."""

    images_BCHW: Tensor
    labels_B: Tensor
    seed: int = 0

    def __len__(self) -> int:
        return len(self.labels_B)


@dataclass(frozen=True, kw_only=True)
class TaskBatch:
    """The tensors of a task. `clean` is there when clean tasks are mixed in."""

    support: Batch
    query: Batch
    clean: Batch | None = None

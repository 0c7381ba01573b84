"""The rule of the inner loop, and the batches of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from metarepair.engine.checks import check_choice, check_number, check_parts

# B images, C H W

BatchNormMode = Literal["frozen", "adapt", "batch"]


@dataclass(frozen=True, kw_only=True)
class InnerRule:
    """How the inner loop adapts a model to a support batch: a fixed number of SGD steps.

    Source: paper Algorithm 1, lines 7 and 18; MAML (Finn et al. 2017).

    Args:
        steps: Number of gradient steps; 0 leaves out the adaptation, so that the query alone is learned from.
        rate: Learning rate of a step, above 0.
        batch_norm: How batch norm treats the batches of a task.
            "frozen": the stored statistics normalise every batch and are never updated.
            "adapt": the support batch is normalised by its own statistics, which also update the stored ones; query
            batches use the stored ones.
            "batch": support and query batches are each normalised by their own statistics, as in the original MAML
            code (meta-training only).
        batch_norm_momentum: Share of the support batch's statistics in an update of the stored ones ("adapt"); above 0
            and at most 1.
        momentum: As in torch.optim.SGD; at least 0 and below 1.
        weight_decay: As in torch.optim.SGD; at least 0.
        parts: Which parameters are adapted, see `adapted_names`. ("*",) adapts all; ("head",) is ANIL.
        learned_rates: Multiply `rate` by a factor for each adapted tensor and step. The factors are meta-learned with θ
            (LSLR of MAML++, Antoniou et al. 2019, Sec. 4).
        dropout: Apply dropout and drop path to support batches, with masks keyed by task and step. Query batches never
            go through them.

    Raises:
        ConfigError: A value is outside its range.
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
        check_number("steps", self.steps, "a whole number, at least 0", whole=True, least=0)
        check_number("rate", self.rate, "a number above 0", above=0)
        check_choice("batch_norm", self.batch_norm, get_args(BatchNormMode))
        momentum = self.batch_norm_momentum
        check_number("batch_norm_momentum", momentum, "above 0 and at most 1", above=0, most=1)
        check_number("momentum", self.momentum, "at least 0 and below 1", least=0, below=1)
        check_number("weight_decay", self.weight_decay, "a number, at least 0", least=0)
        check_parts(self.parts)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images and their labels.

    Args:
        images_BCHW: Floating-point images [B, C, H, W], normalised as the model takes them.
        labels_B: Class numbers [B], int64, on the same device.
        seed: Seeds what the model draws at random for this batch, such as dropout masks; give each task its own.
    """

    images_BCHW: Tensor
    labels_B: Tensor
    seed: int = 0

    def __len__(self) -> int:
        return len(self.labels_B)


@dataclass(frozen=True, kw_only=True)
class TaskBatch:
    """The batches of one task (paper Algorithm 1, line 4).

    Args:
        support: The batch that the inner loop adapts to; D_train in the paper.
        query: The batch that the adapted parameters are judged by; D_test in the paper.
        clean: Images to keep right beside the query, such as clean ones, for an outer loss with `clean_weight` above 0.
    """

    support: Batch
    query: Batch
    clean: Batch | None = None

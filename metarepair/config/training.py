"""The settings of the inner loop and of meta-training."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from metarepair.config.optimizers import OPTIMIZERS, check_options
from metarepair.config.section import Count, Fraction, Positive, Rate, Section, in_yaml
from tasks.errors import near_names

BatchNorm = Literal["frozen", "adapt", "batch"]


class InnerConfig(Section):
    """The inner loop (Algorithm 1, lines 7 and 18), of meta-training and of repair."""

    steps: Positive = Field(3, description="Gradient steps on a task's support, K_inner.")
    rate: Rate = Field(0.03, description="SGD rate of the inner steps.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Of the inner SGD.")
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="L2 penalty in the inner SGD.")
    parts: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        description="Parameters that a task adapts: *, head (ANIL), or names and patterns such as layer3.*, together.",
    )
    learned_rates: bool = Field(
        False, description="Meta-learn a factor on the rate for every tensor and step (MAML++'s LSLR)."
    )
    dropout: bool = Field(
        False, description="Support batches go through dropout and drop path, with masks keyed by the task."
    )
    batch_norm: BatchNorm = Field("adapt", description="What support batches do to batch-norm statistics.")
    batch_norm_momentum: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="Weight of a support batch in the running statistics, for batch_norm: adapt."
    )

    @field_validator("parts", mode="before")
    @classmethod
    def _in_a_list(cls, parts: Any) -> Any:
        if isinstance(parts, str):
            raise ValueError(f"{parts!r} is one name, and this is a list of names: write [{parts}]")
        return parts


class TrainConfig(Section):
    """Meta-training (Algorithm 1, lines 2-12)."""

    episodes: Positive = Field(60, description="Episodes in all.")
    round_episodes: Positive = Field(
        10,
        description="Episodes N of a round; after each round a checkpoint, and a repair judged on validation.",
    )
    tasks: Positive = Field(4, description="Tasks S of an episode.")
    outer_optimizer: str = Field("Adam", description=f"Of torch.optim: {', '.join(OPTIMIZERS)}.")
    outer_options: dict[str, bool | int | float | list[float]] = Field(
        default_factory=dict, description="Further arguments of the optimizer, such as betas or weight_decay."
    )
    outer_rate: Rate = Field(1e-3, description="The outer optimizer's rate.")
    warmup_episodes: Count = Field(0, description="Episodes in which the outer rate rises linearly.")
    outer_decay: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="How the outer rate falls to 0 after the warm-up."
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest norm of the meta-gradient; none when not given."
    )
    order: Literal["second", "first", "reptile"] = Field(
        "second", description="Exact MAML, FOMAML, or Reptile."
    )
    first_order_episodes: Count = Field(
        0, description="Episodes of first order before those of second (MAML++'s annealing)."
    )
    multi_step_episodes: Count = Field(
        0,
        description="Episodes in which the loss after every inner step counts, evenly at first and then less and "
        "less (MAML++'s multi-step loss); 0: the last step alone.",
    )
    memory: Literal["auto", "graph", "recompute"] | Positive = Field(
        "auto",
        description="graph keeps all inner steps' graphs, recompute none, a number that many of the last; auto "
        "keeps as many as fit. The same gradient, to rounding.",
    )
    theta_on_host: bool = Field(False, description="Parameters of recomputed steps wait in host memory.")
    clean_weight: Fraction = Field(0.0, description="Weight of the clean loss of a task (0: the paper's).")
    clean_corrupted: Fraction = Field(
        0.0,
        description="Share, rounded to whole images, of the clean loss's images that are shown under the task's own "
        "corruption, right before or not.",
    )
    precision: Literal["float32", "float64", "bfloat16"] = Field(
        "float32", description="Of weights and gradients; bfloat16: float32 with layers under autocast."
    )
    max_skipped: Count = Field(
        5, description="Episodes whose loss or gradient is not finite, and are skipped, before the run stops."
    )
    kept_checkpoints: Positive = Field(2, description="Newest checkpoints that are kept.")
    threads: Positive = Field(1, description="CPU threads of each training worker.")

    @field_validator("memory", mode="before")
    @classmethod
    def _a_mode_or_a_number(cls, memory: Any) -> Any:
        number = isinstance(memory, int) and not isinstance(memory, bool) and memory >= 1
        if not number and memory not in ("auto", "graph", "recompute"):
            raise ValueError(
                f"{in_yaml(memory)} is no way to use memory. There are: auto, graph, recompute, or a number from 1: of "
                "how many of the last inner steps graphs are kept"
            )
        return memory

    @field_validator("outer_optimizer")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in OPTIMIZERS:
            near = near_names(name, OPTIMIZERS) or "."
            raise ValueError(f"no optimizer {name!r}{near} There are: {', '.join(OPTIMIZERS)}")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.outer_options:
            check_options(self.outer_optimizer, self.outer_options)
        for key in ("warmup_episodes", "first_order_episodes", "multi_step_episodes"):
            if getattr(self, key) > self.episodes:
                raise ValueError(
                    f"{key}={getattr(self, key)} is more than the {self.episodes} episodes of train.episodes"
                )
        if self.order != "second" and self.first_order_episodes:
            raise ValueError("first_order_episodes comes before order: second; leave it 0 for another order")
        if self.clean_corrupted and not self.clean_weight:
            raise ValueError(
                f"clean_corrupted={self.clean_corrupted} is a share of the images that clean_weight weighs; set "
                "clean_weight above 0"
            )
        if self.order == "reptile" and (self.clean_weight or self.multi_step_episodes):
            raise ValueError(
                "order: reptile follows the adaptation and reads no query loss; leave clean_weight and "
                "multi_step_episodes 0"
            )
        return self

    def rounds_of(self, episodes: int) -> int:
        """Rounds of so many episodes; the last may be shorter than the others."""
        return math.ceil(episodes / self.round_episodes)

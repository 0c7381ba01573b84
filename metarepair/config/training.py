"""The settings of the inner loop and of meta-training."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from metarepair.config.optimizers import OPTIMIZERS, check_options
from metarepair.config.section import LARGEST, Count, Positive, Rate, Section, Whole, in_yaml
from tasks.errors import near_names

BatchNorm = Literal["frozen", "adapt", "batch"]
Share = Annotated[float, Field(ge=0, le=LARGEST)]


class InnerConfig(Section):
    """The inner loop of meta-training and repair (Algorithm 1, lines 7 and 18)."""

    steps: Count = Field(
        3,
        description="Gradient steps on a task's support, K_inner; with 0, which leave out adaptation, meta-training is "
        "joint training on the query images.",
    )
    rate: Rate = Field(
        0.03,
        description="SGD learning rate of the inner steps of meta-training (a repair tries `repair.rates`); above 0, "
        "at most 10.",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Momentum of the inner SGD; 0 to below 1."
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Weight of the L2 penalty in the inner SGD; 0 to 1."
    )
    parts: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        description="Parameters that a task adapts: `*` for all, `head` for the classifier (ANIL), or names and "
        "patterns such as `layer3.*`; at least one, combined.",
    )
    learned_rates: bool = Field(
        False,
        description="Whether to meta-learn a factor on the rate for every tensor and step (LSLR of MAML++).",
    )
    dropout: bool = Field(
        False,
        description="Whether support batches pass through dropout and drop path, with masks keyed by the task.",
    )
    batch_norm: BatchNorm = Field(
        "adapt",
        description="Batch-norm statistics. `frozen`: the stored ones, never updated; `adapt`: support batches are "
        "normalised by their own and update the stored ones, which queries use; `batch`: support and query batches "
        "are normalised by their own (meta-training only; repair then adapts).",
    )
    batch_norm_momentum: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1,
        description="Weight of a support batch in the update of the stored statistics, unless `batch_norm: frozen`; "
        "above 0, at most 1.",
    )

    @field_validator("parts", mode="before")
    @classmethod
    def _in_a_list(cls, parts: Any) -> Any:
        if isinstance(parts, str):
            raise ValueError(
                f"{parts!r} is a single name, and this setting is a list of names: write [{parts}]"
            )
        return parts


class QueryConfig(Section):
    """The images that judge a task's adaptation (line 8), as shares of the outer loss, relative to their sum."""

    failures: Share = Field(
        1.0, description="Share of failures of the task's experience, its D_fail; 0 or more."
    )
    right: Share = Field(
        0.0,
        description="Share of images of the task's experience that the deployed DNN gets right; 0 or more.",
    )
    environment: Share = Field(
        0.0,
        description="Share of images of the task's experience as it is, right and wrong; 0 or more.",
    )
    clean: Share = Field(0.0, description="Share of clean training images; 0 or more.")

    @model_validator(mode="after")
    def _some_images(self) -> QueryConfig:
        if not self.failures + self.right + self.environment + self.clean > 0:
            raise ValueError("all shares are 0, and nothing would judge a task; give at least one above 0")
        return self

    @property
    def beside(self) -> float:
        """The share of all images but failures, 0 to 1."""
        others = self.right + self.environment + self.clean
        return others / (self.failures + others)


class TrainConfig(Section):
    """Meta-training (Algorithm 1, lines 2-12)."""

    episodes: Positive = Field(60, description="Episodes of the whole meta-training; at least 1.")
    round_episodes: Positive = Field(
        10,
        description="Episodes N of a round, at least 1; after each round a checkpoint is written and a repair is "
        "scored on validation.",
    )
    tasks: Positive = Field(4, description="Tasks S of an episode; at least 1.")
    start: str = Field(
        "deployed",
        min_length=1,
        description="Weights that meta-training starts from: the deployed DNN's (`deployed`), those of joint training "
        "(`joint`), or a weights file of the same DNN.",
    )
    outer_optimizer: str = Field(
        "Adam", description=f"Outer optimizer, from torch.optim: {', '.join(OPTIMIZERS)}."
    )
    outer_options: dict[str, bool | Whole | float | list[float]] = Field(
        default_factory=dict,
        description="Further arguments of the outer optimizer, such as `betas` or `weight_decay`.",
    )
    outer_rate: Rate = Field(1e-3, description="Learning rate of the outer optimizer; above 0, at most 10.")
    warmup_episodes: Count = Field(
        0,
        description="Number of first episodes in which the outer learning rate rises linearly; 0 to `episodes`.",
    )
    outer_decay: Literal["constant", "cosine", "linear"] = Field(
        "constant",
        description="Outer learning rate after the warm-up: `constant`, or falling to 0 along a `cosine` or a line "
        "(`linear`).",
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Norm that the meta-gradient is clipped to; above 0. If not set, it is not clipped.",
    )
    order: Literal["second", "first", "reptile"] = Field(
        "second",
        description="Meta-gradient: exact MAML (`second`), first-order MAML (`first`), or Reptile (`reptile`).",
    )
    first_order_episodes: Count = Field(
        0,
        description="Number of first episodes with a first-order gradient, before those of second order (derivative-"
        "order annealing of MAML++); 0 to `episodes`.",
    )
    multi_step_episodes: Count = Field(
        0,
        description="Number of first episodes in which the loss after every inner step counts, evenly at first and "
        "then less and less (multi-step loss of MAML++); 0 (the last step alone) to `episodes`.",
    )
    memory: Literal["auto", "graph", "recompute"] | Positive = Field(
        "auto",
        description="Inner steps whose graphs are kept for the meta-gradient: all (`graph`), none (`recompute`), the "
        "last N (a number, at least 1), or as many as fit (`auto`). The gradient is the same up to rounding.",
    )
    theta_on_host: bool = Field(
        False, description="Whether the parameters of recomputed steps are kept in host memory."
    )
    shared: bool = Field(
        False,
        description="Whether one θ_meta serves all targets: it learns from the experiences that are no targets, by the "
        "mean of the targets' confidence. If not, each target has its own.",
    )
    query: QueryConfig = Field(
        QueryConfig(), description="The images that judge a task's adaptation, as shares of the outer loss."
    )
    precision: Literal["float32", "float64", "bfloat16"] = Field(
        "float32",
        description="Type of weights and gradients; `bfloat16`: float32 weights, with layers run under bfloat16 "
        "autocast.",
    )
    max_skipped: Count = Field(
        5,
        description="Number of episodes that may be skipped because their loss or gradient is not finite, before the "
        "run stops; 0 or more.",
    )
    kept_checkpoints: Positive = Field(2, description="Number of newest checkpoints to keep; at least 1.")
    threads: Positive = Field(1, description="CPU threads of each training worker; at least 1.")

    @field_validator("memory", mode="before")
    @classmethod
    def _a_mode_or_a_number(cls, memory: Any) -> Any:
        number = isinstance(memory, int) and not isinstance(memory, bool) and memory >= 1
        if not number and memory not in ("auto", "graph", "recompute"):
            raise ValueError(
                f"{in_yaml(memory)} is not a memory mode. Allowed are: auto, graph, recompute, or a number from 1, "
                "the number of last inner steps whose graphs are kept"
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
            raise ValueError("first_order_episodes needs order: second; leave it at 0 for another order")
        if self.order == "reptile" and (self.query.beside or self.multi_step_episodes):
            raise ValueError(
                "order: reptile uses no query loss; leave query and multi_step_episodes at their defaults"
            )
        return self

    def rounds_of(self, episodes: int) -> int:
        """Return the number of rounds in `episodes` episodes; the last round may be shorter than the others."""
        return math.ceil(episodes / self.round_episodes)

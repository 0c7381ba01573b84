"""The settings of joint training on clean images and experiences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from metarepair.config.pretraining import PretrainConfig
from metarepair.config.section import Count, Fraction, Positive, Rate, Section


class JointConfig(Section):
    """Joint training of the deployed DNN on clean images and the images of all experiences, right and wrong."""

    rounds: Count = Field(
        28,
        description="Rounds of the whole training, a checkpoint after each; 0 leaves the deployed DNN as it is.",
    )
    round_steps: Positive = Field(100, description="Optimizer steps of a round; at least 1.")
    batch_size: Positive = Field(128, description="Images per step, over all workers; at least 1.")
    groups: Positive = Field(
        4,
        description="Equal groups into which a step's images are divided, whatever the number of workers: each has "
        "batch-norm statistics of its own, and one experience and severity; 1 to `batch_size`.",
    )
    draw: Literal["uniform", "confidence"] = Field(
        "uniform",
        description="How a group's experience is drawn: all alike (`uniform`), or by `confidence`, the mean over the "
        "targets of Eq. 8's p, so that one training still serves all targets.",
    )
    clean: Fraction = Field(
        0.5, description="Share of clean images in each group; the others are an experience's. 0 to 1."
    )
    rate: Rate = Field(
        0.02,
        description="Largest learning rate of SGD with Nesterov momentum 0.9, which falls to 0 along a cosine; above "
        "0, at most 10.",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        5e-4, description="Weight of the L2 penalty; 0 or more."
    )
    flip: bool = Field(True, description="Whether half of the images, at random, are flipped left to right.")
    shift: Annotated[int, Field(ge=0, le=16)] = Field(
        4, description="Largest shift of an image in each direction, in pixels, 0 to 16; edges are reflected."
    )
    precision: Literal["float32", "float64", "bfloat16"] = Field(
        "float32", description="Type of weights and gradients, as `pretrain.precision`."
    )

    @model_validator(mode="after")
    def _even_groups(self) -> JointConfig:
        if self.batch_size % self.groups:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of groups={self.groups}; change one of the two"
            )
        return self

    def as_pretraining(self) -> PretrainConfig:
        """Return the same training in the words of pretraining: a round is an epoch."""
        return PretrainConfig(
            epochs=max(self.rounds, 1),
            batch_size=self.batch_size,
            rate=self.rate,
            weight_decay=self.weight_decay,
            warmup_fraction=0.0,
            label_smoothing=0.0,
            ema_decay=0.0,
            flip=self.flip,
            shift=self.shift,
            precision=self.precision,
            keep="last",
            validation_fraction=0.0,
        )

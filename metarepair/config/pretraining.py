"""The settings of pretraining, `metarepair pretrain`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from metarepair.config.section import Positive, Rate, Section

MAGNITUDES = 31  # magnitudes of RandAugment, 0 to 30


class PretrainConfig(Section):
    """Pretraining on the clean training split (paper Sec. 5.1.4)."""

    epochs: Positive = Field(40, description="Passes over the training images; at least 1.")
    batch_size: Positive = Field(128, description="Images per step, over all workers; at least 1.")
    accumulation: Positive = Field(
        1,
        description="Number of parts into which a worker splits its share of a step, to save memory (gradient "
        "accumulation); 1 to `batch_size`.",
    )
    optimizer: Literal["sgd", "adamw"] = Field(
        "sgd",
        description="`sgd`: Nesterov momentum 0.9, with weight decay on all parameters; `adamw`: with weight decay on "
        "parameters with two axes or more.",
    )
    rate: Rate = Field(0.2, description="Largest learning rate, after the warm-up; above 0, at most 10.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        5e-4,
        description="`sgd`: weight of the L2 penalty; `adamw`: share that weights lose per step, times the learning "
        "rate; 0 or more.",
    )
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.15,
        description="Share of all steps in which the learning rate rises linearly, before it falls along a cosine; 0 "
        "to below 1.",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="Share of each label that is spread evenly over all classes; 0 to below 1."
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999,
        description="Decay per step of the exponential moving average of the weights, which is validated and kept; 0 "
        "(the weights themselves) to below 1.",
    )
    flip: bool = Field(True, description="Whether half of the images, at random, are flipped left to right.")
    shift: Annotated[int, Field(ge=0, le=16)] = Field(
        4, description="Largest shift of an image in each direction, in pixels, 0 to 16; edges are reflected."
    )
    randaugment: Annotated[int, Field(ge=0, lt=MAGNITUDES)] = Field(
        0, description="Magnitude of RandAugment, 1 to 30; 0: no RandAugment."
    )
    randaugment_ops: Positive = Field(2, description="RandAugment operations per image; at least 1.")
    mixup: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0, description="α of Mixup's Beta(α, α), above 0 to 10; 0: no Mixup."
    )
    cutmix: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0,
        description="α of CutMix's Beta(α, α), above 0 to 10; 0: no CutMix. With `mixup` too, each step draws one of "
        "the two.",
    )
    precision: Literal["float32", "float64", "bfloat16"] = Field(
        "float32",
        description="Type of weights and gradients; `bfloat16`: float32 weights, with layers run under bfloat16 "
        "autocast.",
    )
    compile: bool = Field(
        False,
        description="Whether to compile the DNN with `torch.compile`, which takes minutes at the start and pays off in "
        "long trainings.",
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="Weights to keep: those of the epoch with the highest validation accuracy, or of the last epoch.",
    )
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.02,
        description="Share of the training split that is held out to validate each epoch; 0 (only with `keep: last`) "
        "to below 1.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        if self.accumulation > self.batch_size:
            raise ValueError(
                f"accumulation={self.accumulation} is more than batch_size={self.batch_size}; lower it"
            )
        if self.keep == "best" and self.validation_fraction == 0:
            raise ValueError(
                "keep: best needs validation images, and validation_fraction is 0: set it above 0, for example 0.02, "
                "or set keep: last. The test split is never used to choose an epoch"
            )
        return self

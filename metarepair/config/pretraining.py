"""The settings of pretraining, `metarepair pretrain`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from metarepair.config.section import Positive, Rate, Section

MAGNITUDES = 31  # of RandAugment, 0 to 30


class PretrainConfig(Section):
    """Pretraining on the clean training split (paper Sec. 5.1.4)."""

    epochs: Positive = Field(40, description="Passes over the training images.")
    batch_size: Positive = Field(128, description="Images of a step, of all workers together.")
    accumulation: Positive = Field(
        1, description="Parts that a worker's share of a step goes through the DNN in, one after the other."
    )
    optimizer: Literal["sgd", "adamw"] = Field(
        "sgd",
        description="sgd: Nesterov momentum 0.9, decay of all parameters; adamw: of those with two axes or more.",
    )
    rate: Rate = Field(0.2, description="Largest rate.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        5e-4, description="sgd: L2 penalty; adamw: share of the rate that weights lose a step."
    )
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.15, description="Share of the steps in which the rate rises linearly, before it falls as a cosine."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="Share of uniform label.")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="Of the averaged weights, which are judged and kept; 0: the weights as they are."
    )
    flip: bool = Field(True, description="Flip half of the images left to right.")
    shift: Annotated[int, Field(ge=0, le=16)] = Field(
        4, description="Largest shift of an image, pixels; its edge is reflected."
    )
    randaugment: Annotated[int, Field(ge=0, lt=MAGNITUDES)] = Field(
        0, description="Magnitude of RandAugment, from 1 to 30; 0: none."
    )
    randaugment_ops: Positive = Field(2, description="Operations of RandAugment on an image.")
    mixup: Annotated[float, Field(ge=0, le=10)] = Field(0.0, description="α of Mixup's Beta(α, α); 0: none.")
    cutmix: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0, description="α of CutMix; 0: none. With mixup, a step draws one of the two."
    )
    precision: Literal["float32", "float64", "bfloat16"] = Field(
        "float32", description="Of weights and gradients; bfloat16: float32 with layers under autocast."
    )
    compile: bool = Field(
        False, description="torch.compile the DNN; minutes at the start, for long trainings."
    )
    keep: Literal["best", "last"] = Field(
        "best", description="Weights of the epoch that is best on the validation part, or of the last one."
    )
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.02, description="Share of the training split that is not trained on and judges the epochs."
    )

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        if self.accumulation > self.batch_size:
            raise ValueError(
                f"accumulation={self.accumulation} is more parts than the {self.batch_size} images of batch_size; "
                "lower it"
            )
        if self.keep == "best" and self.validation_fraction == 0:
            raise ValueError(
                "keep: best needs validation images to judge by: set validation_fraction, as 0.02, or keep: last. "
                "The test split is never looked at"
            )
        return self

"""Settings of the data set: which images, from where, and what is made of them. Read by `metarepair.config.load`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from metarepair.config.section import Positive, Section
from tasks.datasets import DataSource

Colour = tuple[float, float, float]


class DataConfig(Section):
    """Which clean images."""

    name: str = Field(
        "cifar10_sample",
        description="Data set: cifar10, cifar10_sample, cifar100, tinyimagenet, imagefolder or parquet.",
    )
    root: str | None = Field(None, description="Folder of the data set; METAREPAIR_DATA when not given.")
    train: str | None = Field(
        None,
        min_length=1,
        description="Training split, in place of root: a folder of class folders, or Parquet files.",
    )
    test: str | None = Field(
        None, min_length=1, description="As train: the split that targets are mined from."
    )
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        None,
        description="Pixels that the shorter side is resized to, the centre square kept; not resized if not given.",
    )
    image_column: str | None = Field(
        None, description="parquet: the column of encoded images, where unclear."
    )
    label_column: str | None = Field(
        None, description="parquet: the column of labels, where it is not clear."
    )
    classes: tuple[str, ...] | None = Field(
        None, description="Names in the order of the labels; the folders' or the schema's when not given."
    )
    mean: Colour | None = Field(
        None,
        description="Of pixels in [0, 1], red, green, blue; the data set's, or ImageNet's, when not given.",
    )
    std: Colour | None = Field(None, description="As mean: the deviation of pixels in [0, 1].")
    archive: str | None = Field(
        None,
        min_length=1,
        description="Folder of a published archive (CIFAR-10-C) that the test split's corrupted images come from.",
    )
    corruption_table: Literal["cifar", "tinyimagenet", "imagenet"] | None = Field(
        None,
        description="Constants made for 32, 64 or 224 pixels; those for the images' size when not given.",
    )
    max_train_images: Positive | None = Field(
        None, description="Experiences are mined from the first so many training images (all when not given)."
    )
    max_test_images: Positive | None = Field(
        None, description="Targets and clean accuracy use the first so many test images (all when not given)."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> DataConfig:
        self.source()
        return self

    def source(self) -> DataSource:
        """What the settings say to read. Raises ConfigError for what does not go together."""
        return DataSource(
            name=self.name,
            root=self.root,
            train=self.train,
            test=self.test,
            image_size=self.image_size,
            image_column=self.image_column,
            label_column=self.label_column,
            classes=self.classes,
            mean=self.mean,
            std=self.std,
        )

"""The settings of the data set: which images, where they are, and how they are prepared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from metarepair.config.section import Positive, Section
from tasks.datasets import DataSource
from tasks.errors import DataError
from tasks.storage.paths import local, place

Colour = tuple[float, float, float]


class DataConfig(Section):
    """The data set of clean images."""

    name: str = Field(
        "cifar10_sample",
        description="Data set: `cifar10`, `cifar10_sample`, `cifar100`, `tinyimagenet`, `imagefolder`, `parquet`, or "
        "`images`: your own images without splits, which are split into half to learn from, a quarter to select by "
        "and a quarter as test split.",
    )
    root: str | None = Field(
        None,
        description="Folder of the data set; of `images`, class folders or a table. If not set, the environment "
        "variable `METAREPAIR_DATA` names it.",
    )
    train: str | None = Field(
        None,
        min_length=1,
        description="The training split itself, in place of `root`: a folder of class folders, or Parquet files.",
    )
    test: str | None = Field(
        None,
        min_length=1,
        description="The test split itself, from which targets are mined; in the form of `train`.",
    )
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        None,
        description="Side in pixels, 8 to 1024: the shorter side is resized to it and the centre square is kept. "
        "If not set, images are not resized.",
    )
    image_column: str | None = Field(
        None,
        description="Column of the encoded images, for `parquet` files with more than one candidate; in a CSV or JSON "
        "Lines file of `images`, of the paths, `path` if not set.",
    )
    label_column: str | None = Field(
        None,
        description="Column of the labels, for `parquet` files with more than one candidate; in a CSV or JSON Lines "
        "file of `images`, `label` if not set.",
    )
    group_column: str | None = Field(
        None,
        min_length=1,
        description="Column of a table of `images` that names those that belong together, such as a day or a device: "
        "they are in one split. If not set, `group`, if there is such a column.",
    )
    classes: tuple[str, ...] | None = Field(
        None,
        description="Class names in the order of the labels. If not set, the names of the folders or of the schema.",
    )
    mean: Colour | None = Field(
        None,
        description="Mean of the pixels as [red, green, blue], 0 to 1 each. If not set, the data set's, or ImageNet's "
        "for your own images.",
    )
    std: Colour | None = Field(
        None,
        description="Standard deviation of the pixels, in the form of `mean`; 1/255 to 1 each.",
    )
    archive: str | None = Field(
        None,
        min_length=1,
        description="Folder of a published archive, such as CIFAR-10-C, with the corrupted images of the test split. "
        "If not set, they are computed.",
    )
    corruption_table: Literal["cifar", "tinyimagenet", "imagenet"] | None = Field(
        None,
        description="Constants of the corruptions, made for images of 32 (`cifar`), 64 (`tinyimagenet`) or 224 pixels "
        "(`imagenet`). If not set, those that suit the size of the images.",
    )
    max_train_images: Positive | None = Field(
        None,
        description="Number of training images, from the first, to mine experiences from; at least 1. If not set, all.",
    )
    max_test_images: Positive | None = Field(
        None,
        description="Number of test images, from the first, for targets and clean accuracy; at least 1. If not set, "
        "all.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> DataConfig:
        self._source(self.train, self.test)
        return self

    def source(self) -> DataSource:
        """Return the data source that these settings describe. Raises ConfigError if they contradict each other.

        Splits on an object store, as those of a kit, are copied to this node.
        """
        return self._source(_on_this_node(self.train), _on_this_node(self.test))

    def _source(self, train: str | None, test: str | None) -> DataSource:
        return DataSource(
            name=self.name,
            root=self.root,
            train=train,
            test=test,
            image_size=self.image_size,
            image_column=self.image_column,
            label_column=self.label_column,
            group_column=self.group_column,
            classes=self.classes,
            mean=self.mean,
            std=self.std,
        )


def _on_this_node(path: str | None) -> str | None:
    """A local path as it is; that of the node's copy of an object. Raises DataError if there is no such object."""
    if path is None or "://" not in path:
        return path
    try:
        return str(local(place(path)))
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: there is no such object. Give Parquet files there, or a local path."
        ) from error

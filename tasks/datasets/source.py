"""Describe data sets and where they come from. This module reads no files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.datasets.base import Colour, Dataset
from tasks.datasets.cifar_classes import CIFAR10_CLASSES, CIFAR100_CLASSES
from tasks.datasets.normalisation import check_mean, check_std
from tasks.errors import ConfigError, DataError, unknown_name

Table = Literal["cifar", "tinyimagenet", "imagenet"]
DATA_VARIABLE = "METAREPAIR_DATA"
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DatasetInfo:
    """The facts about a data set that are known before its pixels are read.

    Attributes:
        classes: names of the classes, in the order of the labels.
        image_size: side of the square images in pixels.
        corruption_table: name of the table of corruption constants: cifar, tinyimagenet or imagenet.
        mean: mean of each channel (R, G, B), for pixels in [0, 1].
        std: standard deviation of each channel (R, G, B), for pixels in [0, 1].
    """

    classes: tuple[str, ...]
    image_size: int
    corruption_table: str
    mean: Colour
    std: Colour


_CIFAR10 = DatasetInfo(
    classes=CIFAR10_CLASSES,
    image_size=32,
    corruption_table="cifar",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
_CIFAR100 = DatasetInfo(
    classes=CIFAR100_CLASSES,
    image_size=32,
    corruption_table="cifar",
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
# Data sets whose classes are known without reading anything.
DATASETS: Mapping[str, DatasetInfo] = {
    "cifar10": _CIFAR10,
    "cifar10_sample": _CIFAR10,
    "cifar100": _CIFAR100,
}
UNSPLIT = "images"  # a user's images without splits of their own
USERS = ("imagefolder", "parquet", UNSPLIT)
NAMES = (*DATASETS, "tinyimagenet", *USERS)


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """The name and the location of a data set, and how to read it. `None` keeps the data set's own value.

    Attributes:
        name: one of `NAMES`.
        root: folder that holds the data set, or, of `images`, a table; `None` for the path in METAREPAIR_DATA.
        train: folder or file of the training split, instead of `root`; for a user's own images.
        test: folder or file of the test split, instead of `root`; for a user's own images.
        image_size: side in pixels of the square that images are resized and cropped to; not for CIFAR.
        image_column: column of a table that holds the encoded images, or, in CSV and JSON Lines, their paths.
        label_column: column of a table that holds the labels.
        group_column: column of a table that names images that belong together; of `images` only.
        classes: names of the classes, in the order of the labels; for a user's own images.
        mean: mean of each channel (R, G, B), for pixels in [0, 1].
        std: standard deviation of each channel (R, G, B), for pixels in [0, 1].
        settings: names of the settings `image_column` and `label_column`, for messages.

    Raises:
        ConfigError: the name is unknown, settings contradict each other, or a value is out of range.
    """

    name: str
    root: str | None = None
    train: str | None = None
    test: str | None = None
    image_size: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    classes: tuple[str, ...] | None = None
    mean: Colour | None = None
    std: Colour | None = None
    settings: tuple[str, str] = ("data.image_column", "data.label_column")

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ConfigError(unknown_name("data set", str(self.name), NAMES))
        for setting in ("root", "train", "test"):
            if not isinstance(getattr(self, setting), str | Path | None):
                raise ConfigError(
                    f"data.{setting}={getattr(self, setting)!r} is not the path of a folder or file."
                )
        if self.image_size is not None and (type(self.image_size) is not int or self.image_size < 1):
            raise ConfigError(f"data.image_size={self.image_size!r} is not a number of pixels, 1 or more.")
        allowed = {
            "image_size": ("tinyimagenet", *USERS),
            "train": ("imagefolder", "parquet"),
            "test": ("imagefolder", "parquet"),
            "classes": USERS,
            "image_column": ("parquet", UNSPLIT),
            "label_column": ("parquet", UNSPLIT),
            "group_column": (UNSPLIT,),
        }
        for setting, names in allowed.items():
            if getattr(self, setting) is not None and self.name not in names:
                raise ConfigError(
                    f"data.{setting} is given, but {self.name} has its own; it is for {', '.join(names)}. "
                    "Leave it out, or name one of these in data.name."
                )
        for one, other in (("train", "test"), ("mean", "std")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ConfigError(f"data.{one} and data.{other} go together: give both, or neither.")
        check_mean("data.mean", self.mean or ())
        check_std("data.std", self.std or ())
        if self.classes is not None and len(set(self.classes)) < max(len(self.classes), 1):
            raise ConfigError("data.classes must name at least one class, and each class once.")

    def location(self, title: str) -> Path:
        """Find the root of the data set.

        Args:
            title: what to call the data set in an error message.

        Returns:
            The path: `root`, or that in METAREPAIR_DATA.

        Raises:
            DataError: neither is given.
        """
        given = self.root or os.environ.get(DATA_VARIABLE)
        remedy = (
            "" if self.name in USERS else " `--set data.name=cifar10_sample` uses the shipped sample instead."
        )
        if not given:
            raise DataError(
                f"Where is {title}? Set data.root, or the environment variable {DATA_VARIABLE}, to its folder"
                f"{' or table' if self.name == UNSPLIT else ''}.{remedy}"
            )
        return Path(given).expanduser()

    def folder(self, title: str) -> Path:
        """Find the root folder of the data set.

        Args:
            title: what to call the data set in an error message.

        Returns:
            The folder: `root`, or the folder in METAREPAIR_DATA.

        Raises:
            DataError: neither is given, or it is not a folder.
        """
        folder = self.location(title)
        if not folder.is_dir():
            raise DataError(
                f"The data root {folder} is not a folder. Set data.root or {DATA_VARIABLE} to one."
            )
        return folder

    def info(self, classes: tuple[str, ...], image_size: int) -> DatasetInfo:
        """Describe a user's own images.

        Args:
            classes: names of the classes, in the order of the labels.
            image_size: side of the images in pixels.

        Returns:
            The facts, with ImageNet's mean and deviation where the source has none.
        """
        return DatasetInfo(
            classes=classes,
            image_size=image_size,
            corruption_table=table_for(image_size),
            mean=self.mean or IMAGENET_MEAN,
            std=self.std or IMAGENET_STD,
        )


def source_from(settings: Mapping[str, Any]) -> DataSource:
    """Rebuild the source of recorded `data` settings.

    Args:
        settings: the `data` settings that a stage recorded, as plain values. They have no locations, so the data set
            is looked for in METAREPAIR_DATA.

    Returns:
        The source.

    Raises:
        ConfigError: the settings name no known data set, or contradict each other.
    """
    kept = ("image_size", "image_column", "label_column", "group_column", "classes", "mean", "std")
    values: dict[str, Any] = {key: settings.get(key) for key in kept}
    tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return DataSource(name=str(settings.get("name")), **tuples)


def table_for(image_size: int) -> Table:
    """Choose the published table of corruption constants for an image size.

    Args:
        image_size: side of the images in pixels.

    Returns:
        cifar (up to 48 px), tinyimagenet (up to 112 px) or imagenet.
    """
    if image_size <= 48:
        return "cifar"
    return "tinyimagenet" if image_size <= 112 else "imagenet"


def corruption_table_of(data: Dataset) -> str:
    """Choose the table of corruption constants for a data set.

    Args:
        data: one split of the data set.

    Returns:
        The table that the data set names, else the one for its longer side.
    """
    return data.corruption_table or table_for(max(data.image_shape[:2]))

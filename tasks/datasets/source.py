"""Settings in, where a data set comes from and what is known of it out; nothing is read here."""

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
    """What is known of a data set before its pixels are read. mean and std are of the pixels in [0, 1]."""

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
# Those whose classes are known without reading anything.
DATASETS: Mapping[str, DatasetInfo] = {
    "cifar10": _CIFAR10,
    "cifar10_sample": _CIFAR10,
    "cifar100": _CIFAR100,
}
USERS = ("imagefolder", "parquet")
NAMES = (*DATASETS, "tinyimagenet", *USERS)


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A data set's name and place, and how it is to be read. None everywhere: as the data set is.

    root: the folder that holds it, METAREPAIR_DATA when not given. train, test: a split's own place, in place of root.
    image_size: side of the square that images are resized and cropped to. classes: names in the order of the labels.
    mean, std: of the pixels in [0, 1]. Raises ConfigError for what does not go together.
    """

    name: str
    root: str | None = None
    train: str | None = None
    test: str | None = None
    image_size: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    classes: tuple[str, ...] | None = None
    mean: Colour | None = None
    std: Colour | None = None

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ConfigError(unknown_name("data set", self.name, NAMES))
        allowed = {
            "image_size": ("tinyimagenet", *USERS),
            "train": USERS,
            "test": USERS,
            "classes": USERS,
            "image_column": ("parquet",),
            "label_column": ("parquet",),
        }
        for setting, names in allowed.items():
            if getattr(self, setting) is not None and self.name not in names:
                raise ConfigError(
                    f"data.{setting} is given, but {self.name} has its own; it is for {', '.join(names)}. "
                    "Leave it out, or name one of them in data.name."
                )
        for one, other in (("train", "test"), ("mean", "std")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ConfigError(f"data.{one} and data.{other} go together: give both, or neither.")
        check_mean("data.mean", self.mean or ())
        check_std("data.std", self.std or ())
        if self.classes is not None and len(set(self.classes)) < max(len(self.classes), 1):
            raise ConfigError("data.classes must name at least one class, and each of them once.")

    def folder(self, title: str) -> Path:
        """The root, which must be a folder. Raises DataError that calls the data set `title`."""
        given = self.root or os.environ.get(DATA_VARIABLE)
        remedy = (
            "" if self.name in USERS else " `--set data.name=cifar10_sample` uses the shipped sample instead."
        )
        if not given:
            raise DataError(
                f"Where is {title}? Set data.root, or the environment variable {DATA_VARIABLE}, to its folder.{remedy}"
            )
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise DataError(
                f"The data root {folder} is not a folder. Set data.root or {DATA_VARIABLE} to one that is."
            )
        return folder


def source_from(settings: Mapping[str, Any]) -> DataSource:
    """The source that recorded `data` settings name; places are not recorded, so it is looked for in METAREPAIR_DATA.

    Raises ConfigError.
    """
    kept = ("image_size", "image_column", "label_column", "classes", "mean", "std")
    values: dict[str, Any] = {key: settings.get(key) for key in kept}
    tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return DataSource(name=str(settings.get("name")), **tuples)


def table_for(image_size: int) -> Table:
    """The published table of corruption constants that was made for images of about this size in pixels."""
    if image_size <= 48:
        return "cifar"
    return "tinyimagenet" if image_size <= 112 else "imagenet"


def corruption_table_of(data: Dataset) -> str:
    """The table that the data set asks for, or the one for its size."""
    return data.corruption_table or table_for(max(data.image_shape[:2]))

"""Folders of image files in, a listing of a split out: a folder for each class, whose name is the class' name.

    ROOT/train/CLASS/…/FILE    and    ROOT/test/CLASS/…/FILE    (or val, valid, validation in place of test)
    data.train/CLASS/…/FILE    and    data.test/CLASS/…/FILE

Classes are in the order of their sorted names (torchvision.datasets.ImageFolder's), or that of data.classes, which may
name classes that have no folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tasks.datasets.base import Split
from tasks.datasets.decoding import BATCH, Encoded, Listing, native_size
from tasks.datasets.source import IMAGENET_MEAN, IMAGENET_STD, DatasetInfo, DataSource, table_for
from tasks.errors import DataError, near_names

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".gif",
    ".ppm",
    ".pgm",
    ".pnm",
    ".jp2",
    ".avif",
)
TEST_FOLDERS = ("test", "val", "valid", "validation")


def describe_folder(source: DataSource) -> DatasetInfo:
    """The classes and the image size, by the training split's class folders and its first image."""
    train = split_folder(source, "train")
    classes = source.classes or _class_folders(train)
    size = source.image_size
    if size is None:
        first = next(iter_images(train / _class_folders(train)[0]), None)
        if first is None:
            raise _empty(train / _class_folders(train)[0])
        size = native_size(Encoded(name=str(first), content=first))
    return DatasetInfo(
        classes=classes,
        image_size=size,
        corruption_table=table_for(size),
        mean=source.mean or IMAGENET_MEAN,
        std=source.std or IMAGENET_STD,
    )


def list_folder(source: DataSource, split: Split) -> Listing:
    """The images of a split, sorted by class folder and path. Raises DataError for what is missing or empty."""
    folder = split_folder(source, split)
    there = _class_folders(folder)
    classes = source.classes or _class_folders(split_folder(source, "train"))
    _check_classes(folder, there, classes, given=source.classes is not None)
    files: list[Path] = []
    labels: list[int] = []
    for name in there:
        found = list(iter_images(folder / name))
        if not found:
            raise _empty(folder / name)
        files += found
        labels += [classes.index(name)] * len(found)
    return files_listing(source, split, classes, files, labels)


def files_listing(
    source: DataSource, split: Split, classes: tuple[str, ...], files: Sequence[Path], labels: Sequence[int]
) -> Listing:
    """A listing whose images are files."""

    def batches() -> Iterator[Sequence[Encoded]]:
        for start in range(0, len(files), BATCH):
            yield [Encoded(name=str(file), content=file) for file in files[start : start + BATCH]]

    return Listing(
        name=source.name,
        split=split,
        classes=classes,
        labels_N=np.array(labels, np.int64),
        image_size=source.image_size,
        files=files,
        batches=batches,
    )


def split_folder(source: DataSource, split: Split) -> Path:
    """Where a split's class folders are. Raises DataError where there is none."""
    given = source.train if split == "train" else source.test
    if given is not None:
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise DataError(
                f"data.{split} {folder} is not a folder. Give the one that holds the class folders."
            )
        return folder
    root = source.folder("the image folder")
    names = ("train",) if split == "train" else TEST_FOLDERS
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise DataError(
        f"{root} has no folder {' or '.join(names)}. Set data.root to the folder that holds train/ and test/ (or "
        "val/), each with a folder for every class; or set both data.train and data.test."
    )


def _class_folders(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if not names:
        raise DataError(
            f"{folder} holds no class folders. Put the images of each class into a folder with the class' name."
        )
    return names


def iter_images(folder: Path) -> Iterator[Path]:
    """Image files of a folder and of those below it, sorted; hidden ones and other files are passed over."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield Path(parent) / name


def _check_classes(folder: Path, there: Sequence[str], classes: Sequence[str], *, given: bool) -> None:
    known = "data.classes" if given else "the training split"
    unknown = sorted(set(there) - set(classes))
    if unknown:
        raise DataError(
            f"{folder} has the class folder {unknown[0]!r}, which {known} does not have"
            f"{near_names(unknown[0], classes) or '.'} ({len(unknown)} such folders.) Rename or remove it."
        )
    missing = sorted(set(classes) - set(there))
    if missing and not given:
        raise DataError(
            f"{folder} lacks the class folder {missing[0]!r} that the training split has ({len(missing)} such "
            "classes). Add it, or name all the classes in data.classes, which may lack images."
        )


def _empty(folder: Path) -> DataError:
    return DataError(
        f"The class folder {folder} holds no images ({', '.join(SUFFIXES)}). Put some there, or remove it."
    )

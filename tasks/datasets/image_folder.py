"""Folders of image files in, a listing of a split out: a folder for each class, whose name is the class' name.

    ROOT/train/CLASS/…/FILE    and    ROOT/test/CLASS/…/FILE    (or val, valid, validation in place of test)
    data.train/CLASS/…/FILE    and    data.test/CLASS/…/FILE

Classes are in the order of their sorted names (torchvision.datasets.ImageFolder's), or that of data.classes, which may
name classes that have no folder. Hidden files and folders, and files with other suffixes, are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tasks.datasets.base import Split
from tasks.datasets.decoding import BATCH, Encoded, Listing, native_size
from tasks.datasets.own_files import (
    HIDDEN,
    PassedOver,
    entries,
    is_empty,
    is_hidden,
    iter_files,
    refuse_dead_link,
)
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
_SPLIT_NAMES: Mapping[Split, tuple[str, ...]] = {"train": ("train",), "test": TEST_FOLDERS}


def describe_folder(source: DataSource) -> DatasetInfo:
    """The classes and the image size, by the training split's class folders and its first image.

    Raises DataError for a class folder that is empty or that the other split lacks, so that it is named before the
    number of classes is compared with the DNN's.
    """
    train = split_folder(source, "train")
    passed = PassedOver(train)
    there = _class_folders(train, passed)
    classes = source.classes or there
    _check_folders(train, there, classes, given=source.classes is not None)
    test = _find_split(source, "test")
    if test is not None:
        beside = _class_folders(test, PassedOver(test))
        _check_folders(test, beside, classes, given=source.classes is not None)
    size = source.image_size
    if size is None:
        first = next(iter_files(train / there[0], SUFFIXES, passed), None)
        if first is None:
            raise _empty(train / there[0], passed)
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
    passed = PassedOver(folder)
    there = _class_folders(folder, passed)
    classes = source.classes or (there if split == "train" else _training_classes(source))
    _check_classes(folder, there, classes, given=source.classes is not None)
    files: list[Path] = []
    labels: list[int] = []
    for name in there:
        found = list(iter_files(folder / name, SUFFIXES, passed))
        if not found:
            raise _empty(folder / name, passed)
        files += found
        labels += [classes.index(name)] * len(found)
    unused = _unused_splits(source) if split == "test" else ()
    return files_listing(source, split, classes, files, labels, passed_over=(*passed.notes(), *unused))


def files_listing(
    source: DataSource,
    split: Split,
    classes: tuple[str, ...],
    files: Sequence[Path],
    labels: Sequence[int],
    *,
    passed_over: tuple[str, ...],
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
        passed_over=passed_over,
    )


def split_folder(source: DataSource, split: Split) -> Path:
    """Where a split's class folders are. Raises DataError where there is none."""
    found = _find_split(source, split)
    if found is not None:
        return found
    given = source.train if split == "train" else source.test
    if given is not None:
        raise DataError(
            f"data.{split} {Path(given).expanduser()} is not a folder. Give the one that holds the class folders."
        )
    names = " or ".join(_SPLIT_NAMES[split])
    raise DataError(
        f"{source.folder('the image folder')} has no folder {names}. Set data.root to the folder that holds "
        "train/ and test/ (or val/), each with a folder for every class; or set both data.train and data.test."
    )


def _find_split(source: DataSource, split: Split) -> Path | None:
    """Where a split's class folders are; None where they are not there. Raises DataError for a dead link."""
    given = source.train if split == "train" else source.test
    if given is not None:
        folder = Path(given).expanduser()
        return folder if folder.is_dir() else None
    root = source.folder("the image folder")
    for name in _SPLIT_NAMES[split]:
        # Otherwise val/ would be read in place of a test/ that leads nowhere.
        refuse_dead_link(root / name)
        if (root / name).is_dir():
            return root / name
    return None


def _unused_splits(source: DataSource) -> tuple[str, ...]:
    """A sentence about folders of the root that would have been the test split had another one not been there."""
    if source.test is not None:
        return ()
    used = split_folder(source, "test")
    passed = PassedOver(used.parent)
    for name in TEST_FOLDERS:
        other = used.parent / name
        if other.is_dir() and not other.samefile(used):
            passed.add(f"beside {used.name}/, which is the test split", other)
    return passed.notes()


def _training_classes(source: DataSource) -> tuple[str, ...]:
    train = split_folder(source, "train")
    return _class_folders(train, PassedOver(train))


def _class_folders(folder: Path, passed: PassedOver) -> tuple[str, ...]:
    """Names of the class folders, sorted; links to folders are among them."""
    names = []
    for path in entries(folder):
        if is_hidden(path.name):
            passed.add(HIDDEN, path)
        elif path.is_dir():
            names.append(path.name)
        else:
            passed.add("outside the class folders", path)
    if not names:
        raise DataError(
            f"{folder} holds no class folders. Put the images of each class into a folder with the class' name."
        )
    return tuple(names)


def _check_folders(folder: Path, there: Sequence[str], classes: Sequence[str], *, given: bool) -> None:
    """Raise DataError for class folders that are empty or are not the classes; files below them are not listed."""
    for name in there:
        if is_empty(folder / name):
            raise _empty(folder / name, PassedOver(folder))
    _check_classes(folder, there, classes, given=given)


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
            "classes). Add it, remove it there, or name all the classes in data.classes, which may lack images."
        )


def _empty(folder: Path, passed: PassedOver) -> DataError:
    text = f"The class folder {folder} holds no images ({', '.join(SUFFIXES)}). Put some there, or remove it."
    return DataError(" ".join((text, *passed.notes())))

"""List the images of a split that is a folder of image files, with one folder per class, named after the class.

    ROOT/train/CLASS/…/FILE    and    ROOT/test/CLASS/…/FILE    (or val, valid, validation instead of test)
    data.train/CLASS/…/FILE    and    data.test/CLASS/…/FILE

Classes are in the order of their sorted names (as in torchvision.datasets.ImageFolder) or in that of data.classes,
which may name classes without a folder. Hidden files and folders, and files with other suffixes, are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tasks.datasets.base import Split
from tasks.datasets.decoding import BATCH, EncodedImage, Listing, native_size
from tasks.datasets.own_files import (
    HIDDEN,
    IgnoredFiles,
    entries,
    is_empty,
    is_hidden,
    iter_files,
    refuse_dead_link,
)
from tasks.datasets.source import DatasetInfo, DataSource
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
    """The classes and the image size, from the training split's class folders and its first image.

    Raises DataError for a class folder that is empty or that the other split lacks, so that this error comes before
    the number of classes is compared with the DNN's.
    """
    train = split_folder(source, "train")
    passed = IgnoredFiles(train)
    there = _class_folders(train, passed)
    classes = source.classes or there
    _check_folders(train, there, classes, given=source.classes is not None)
    test = _find_split(source, "test")
    if test is not None:
        beside = _class_folders(test, IgnoredFiles(test))
        _check_folders(test, beside, classes, given=source.classes is not None)
    size = source.image_size
    if size is None:
        first = next(iter_files(train / there[0], SUFFIXES, passed), None)
        if first is None:
            raise _empty(train / there[0], passed)
        size = native_size(EncodedImage(name=str(first), content=first))
    return source.info(classes, size)


def list_folder(source: DataSource, split: Split) -> Listing:
    """List the images of a split, sorted by class folder and path. Raises DataError for missing or empty folders."""
    folder = split_folder(source, split)
    passed = IgnoredFiles(folder)
    there = _class_folders(folder, passed)
    classes = source.classes or (there if split == "train" else _training_classes(source))
    _check_classes(folder, there, classes, given=source.classes is not None)
    files: list[Path] = []
    labels: list[int] = []
    for name in there:
        images = list(iter_files(folder / name, SUFFIXES, passed))
        if not images:
            raise _empty(folder / name, passed)
        files += images
        labels += [classes.index(name)] * len(images)
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
    """A listing of image files."""

    def batches() -> Iterator[Sequence[EncodedImage]]:
        for start in range(0, len(files), BATCH):
            yield [EncodedImage(name=str(file), content=file) for file in files[start : start + BATCH]]

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
    """The folder that holds a split's class folders. Raises DataError if there is none."""
    folder = _find_split(source, split)
    if folder is not None:
        return folder
    given = source.train if split == "train" else source.test
    if given is not None:
        raise DataError(
            f"data.{split} {Path(given).expanduser()} is not a folder. Give the one that holds the class folders."
        )
    names = " or ".join(_SPLIT_NAMES[split])
    raise DataError(
        f"{source.folder('the image folder')} has no folder {names}. Set data.root to the folder that holds "
        "train/ and test/ (or val/), each with a folder for every class; or set both data.train and data.test; or, if "
        "it holds the class folders themselves, set data.name: images, which splits them."
    )


def _find_split(source: DataSource, split: Split) -> Path | None:
    """The folder that holds a split's class folders, or `None`. Raises DataError for a dead link."""
    given = source.train if split == "train" else source.test
    if given is not None:
        folder = Path(given).expanduser()
        return folder if folder.is_dir() else None
    root = source.folder("the image folder")
    for name in _SPLIT_NAMES[split]:
        # Otherwise val/ would be read instead of a test/ that is a dead link.
        refuse_dead_link(root / name)
        if (root / name).is_dir():
            return root / name
    return None


def _unused_splits(source: DataSource) -> tuple[str, ...]:
    """A sentence about other folders of the root that could have been the test split; none if there are none."""
    if source.test is not None:
        return ()
    used = split_folder(source, "test")
    passed = IgnoredFiles(used.parent)
    for name in TEST_FOLDERS:
        other = used.parent / name
        if other.is_dir() and not other.samefile(used):
            passed.add(f"beside {used.name}/, which is the test split", other)
    return passed.notes()


def _training_classes(source: DataSource) -> tuple[str, ...]:
    train = split_folder(source, "train")
    return _class_folders(train, IgnoredFiles(train))


def _class_folders(folder: Path, passed: IgnoredFiles) -> tuple[str, ...]:
    """The sorted names of the class folders, including links to folders."""
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
            f"{folder} holds no class folders. Put the images of each class into a folder named after the class."
        )
    return tuple(names)


def _check_folders(folder: Path, there: Sequence[str], classes: Sequence[str], *, given: bool) -> None:
    """Raise DataError for class folders that are empty or do not match the classes, without listing their files."""
    for name in there:
        if is_empty(folder / name):
            raise _empty(folder / name, IgnoredFiles(folder))
    _check_classes(folder, there, classes, given=given)


def _check_classes(folder: Path, there: Sequence[str], classes: Sequence[str], *, given: bool) -> None:
    known = "data.classes" if given else "the training split"
    unknown = sorted(set(there) - set(classes))
    if unknown:
        raise DataError(
            f"{folder} has the class folder {unknown[0]!r}, which {known} does not have"
            f"{near_names(unknown[0], classes) or '.'} Rename or remove it (such folders: {len(unknown)})."
        )
    missing = sorted(set(classes) - set(there))
    if missing and not given:
        raise DataError(
            f"{folder} lacks the class folder {missing[0]!r} that the training split has ({len(missing)} such "
            "classes). Add it, remove it there, or name all classes in data.classes, which may include classes without "
            "images."
        )


def _empty(folder: Path, passed: IgnoredFiles) -> DataError:
    text = f"The class folder {folder} holds no images ({', '.join(SUFFIXES)}). Put some there, or remove it."
    return DataError(" ".join((text, *passed.notes())))

"""Load a data set, or the facts about it, by its name or its `DataSource`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import get_args

from tasks.datasets.base import ArrayDataset, Split
from tasks.datasets.cifar import BATCHES, load_cifar
from tasks.datasets.decoding import Listing, decode_listing
from tasks.datasets.image_folder import describe_folder, list_folder, split_folder
from tasks.datasets.image_table import describe_table, list_table
from tasks.datasets.labelled_images import form_of
from tasks.datasets.source import DATASETS, UNSPLIT, DatasetInfo, DataSource
from tasks.datasets.table_files import split_files
from tasks.datasets.tiny_imagenet import (
    describe_tiny_imagenet,
    list_tiny_imagenet,
    tiny_imagenet_folder,
)
from tasks.datasets.unsplit import describe_unsplit, list_unsplit, unsplit_source
from tasks.errors import ConfigError

_ON_DISK: Mapping[str, tuple[Callable[[DataSource], DatasetInfo], Callable[[DataSource, Split], Listing]]] = {
    "tinyimagenet": (describe_tiny_imagenet, list_tiny_imagenet),
    "imagefolder": (describe_folder, list_folder),
    "parquet": (describe_table, list_table),
    UNSPLIT: (describe_unsplit, list_unsplit),
}


def _source_of(source: str | DataSource, *, root: str | None = None) -> DataSource:
    """The source itself, or that of a name. Raises ConfigError for anything else."""
    if isinstance(source, DataSource):
        return source
    if not isinstance(source, str):
        raise ConfigError(
            f"source is {type(source).__name__}; give the name of a data set, such as 'cifar10', or a DataSource."
        )
    return DataSource(name=source, root=root)


def _check_split(source: DataSource, split: str) -> None:
    there = get_args(Split) if source.name == UNSPLIT else ("train", "test")
    if split not in there:
        raise ConfigError(
            f"split={split!r} is not a split of {source.name}; give {' or '.join(map(repr, there))}."
        )


def dataset_info(source: str | DataSource) -> DatasetInfo:
    """Find the classes, the image size and the normalisation of a data set.

    For CIFAR nothing is read; for other data sets, the names of files and one image.

    Args:
        source: name of the data set, or its source with settings.

    Returns:
        The facts, with the mean and deviation of `source` if it has them.

    Raises:
        ConfigError: the name is unknown; the message suggests similar names.
        DataError: nothing readable is found.

    Example:
        >>> from tasks.datasets import dataset_info
        >>> info = dataset_info("cifar10")
        >>> info.image_size, info.classes[:2]
        (32, ('airplane', 'automobile'))
    """
    source = _source_of(source)
    if source.name in _ON_DISK:
        describe, _ = _ON_DISK[source.name]
        return describe(source)
    info = DATASETS[source.name]
    return replace(info, mean=source.mean or info.mean, std=source.std or info.std)


def load_dataset(source: str | DataSource, split: Split, *, root: str | None = None) -> ArrayDataset:
    """Load one split of a data set.

    Args:
        source: name of the data set, or its source with settings.
        split: `train` or `test`; of images without splits of their own (`images`) also `select`.
        root: folder that holds the data set, if `source` is a name; `None` for the folder in METAREPAIR_DATA. The
            shipped sample, `cifar10_sample`, needs neither.

    Returns:
        The split, with pixels uint8 [N, H, W, 3] in RGB. Large data sets are memory-mapped.

    Raises:
        ConfigError: the name is unknown (the message suggests similar names), or the split is.
        DataError: nothing readable is found, or images or labels cannot be used.

    Example:
        >>> from tasks.datasets import load_dataset
        >>> data = load_dataset("cifar10_sample", "test")
        >>> data.image_shape, len(data.classes)
        ((32, 32, 3), 10)
    """
    source = _source_of(source, root=root)
    _check_split(source, split)
    if source.name in _ON_DISK:
        _, list_images = _ON_DISK[source.name]
        return decode_listing(list_images(source, split))
    return load_cifar(source, split)


def check_folders(source: DataSource) -> None:
    """Check that the folders or files of both splits exist, without reading an image.

    Args:
        source: the data set with its settings.

    Raises:
        DataError: a folder or file is missing.
    """
    if source.name == "imagefolder":
        split_folder(source, "train"), split_folder(source, "test")
    elif source.name == "parquet":
        split_files(source, "train"), split_files(source, "test")
    elif source.name == UNSPLIT:
        form_of(unsplit_source(source))
    elif source.name == "tinyimagenet":
        tiny_imagenet_folder(source)
    elif source.name in BATCHES:
        source.folder(BATCHES[source.name].title)


def count_images(source: str | DataSource, split: Split) -> tuple[int, int]:
    """Count the images and classes of a split, without decoding image files.

    Args:
        source: name of the data set, or its source with settings.
        split: as in `load_dataset`.

    Returns:
        The number of images and the number of classes.

    Raises:
        ConfigError: the name or the split is unknown.
        DataError: nothing readable is found.
    """
    source = _source_of(source)
    _check_split(source, split)
    if source.name in _ON_DISK:
        _, list_images = _ON_DISK[source.name]
        listing = list_images(source, split)
        return len(listing.labels_N), len(listing.classes)
    data = load_cifar(source, split)
    return len(data.labels_N), len(data.classes)

"""A data set's name, or a source with its settings, in; what is known of it, and its splits, out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tasks.datasets.base import ArrayDataset, Split
from tasks.datasets.cifar import BATCHES, load_cifar
from tasks.datasets.decoding import Listing, decode_listing
from tasks.datasets.image_folder import describe_folder, list_folder, split_folder
from tasks.datasets.image_table import describe_table, list_table
from tasks.datasets.source import DATASETS, DatasetInfo, DataSource
from tasks.datasets.table_files import split_files
from tasks.datasets.tiny_imagenet import (
    describe_tiny_imagenet,
    list_tiny_imagenet,
    tiny_imagenet_folder,
)

_ON_DISK: Mapping[str, tuple[Callable[[DataSource], DatasetInfo], Callable[[DataSource, Split], Listing]]] = {
    "tinyimagenet": (describe_tiny_imagenet, list_tiny_imagenet),
    "imagefolder": (describe_folder, list_folder),
    "parquet": (describe_table, list_table),
}


def dataset_info(source: str | DataSource) -> DatasetInfo:
    """What is known of a data set: of CIFAR without reading anything, of others by names of files and one image.

    Raises ConfigError (near names) for an unknown name, DataError when nothing readable is found.
    """
    source = DataSource(name=source) if isinstance(source, str) else source
    if source.name in _ON_DISK:
        describe, _ = _ON_DISK[source.name]
        return describe(source)
    info = DATASETS[source.name]
    return replace(info, mean=source.mean or info.mean, std=source.std or info.std)


def load_dataset(source: str | DataSource, split: Split, *, root: str | None = None) -> ArrayDataset:
    """One split of a data set, from its `root` or METAREPAIR_DATA (the sample needs neither).

    Raises ConfigError for an unknown name, DataError when nothing readable is found there.
    """
    source = DataSource(name=source, root=root) if isinstance(source, str) else source
    if source.name in _ON_DISK:
        _, listed = _ON_DISK[source.name]
        return decode_listing(listed(source, split))
    return load_cifar(source, split)


def check_folders(source: DataSource) -> None:
    """Raise DataError when a folder or file that holds a split is missing. No image is read."""
    if source.name == "imagefolder":
        split_folder(source, "train"), split_folder(source, "test")
    elif source.name == "parquet":
        split_files(source, "train"), split_files(source, "test")
    elif source.name == "tinyimagenet":
        tiny_imagenet_folder(source)
    elif source.name in BATCHES:
        source.folder(BATCHES[source.name].title)


def count_images(source: str | DataSource, split: Split) -> tuple[int, int]:
    """Images and classes of a split, without decoding image files. Raises as `load_dataset` does."""
    source = DataSource(name=source) if isinstance(source, str) else source
    if source.name in _ON_DISK:
        _, listed = _ON_DISK[source.name]
        listing = listed(source, split)
        return len(listing.labels_N), len(listing.classes)
    data = load_cifar(source, split)
    return len(data.labels_N), len(data.classes)

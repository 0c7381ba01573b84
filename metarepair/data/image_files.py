"""Read labelled images that a caller names by a path, with the readers of the command line's `--images` and `--clean`.

A path is a folder of class folders, a CSV or JSON Lines file, or Parquet or Arrow tables (tasks.datasets).
"""

# N images

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tasks.datasets import DataSource, ImageSource, dataset_info, list_images
from tasks.datasets.decoding import Listing, iter_decoded, native_size
from tasks.datasets.labelled_images import form_of
from tasks.datasets.source import UNSPLIT
from tasks.datasets.unsplit import check_labels, unsplit_source
from tasks.errors import ConfigError
from tasks.records import Pixels
from tasks.splits.digests import pixel_digests
from tasks.storage.paths import place


def local_path(given: str | Path, *, name: str) -> Path:
    """The folder or file of labelled images, absolute; errors call it `name`.

    Raises ConfigError for a path on an object store or one that cannot be looked up, DataError for one that does not
    exist or has another form.
    """
    path = place(str(given))
    if not isinstance(path, Path):
        raise ConfigError(
            f"{name}={str(given)!r}: labelled images are read from a local folder or file. Copy them to this machine."
        )
    try:
        form_of(ImageSource(setting=name, location=path))
    except OSError as error:
        raise ConfigError(
            f"{name}={str(given)[:200]!r} cannot be looked up ({error.strerror}). Name a folder or file that you can "
            "read."
        ) from error
    return path


def named_classes(classes: Any, *, image_size: int | None = None, **clean: Any) -> tuple[str, ...] | None:
    """The names of the classes: `classes`, else those in the first of the clean images that are a path, else None."""
    if classes is not None:
        if isinstance(classes, str) or not isinstance(classes, Iterable):
            raise ConfigError(f"classes={classes!r} is not a list of names, such as ['cat', 'dog'].")
        return tuple(map(str, classes))
    for name, given in clean.items():
        if isinstance(given, str | Path):
            return dataset_info(_source(given, name=name, classes=None, image_size=image_size)).classes
    return None


def read_images(
    given: str | Path, *, name: str, classes: tuple[str, ...] | None, image_size: int | None
) -> tuple[Pixels, Listing]:
    """The pixels uint8 [N, side, side, 3] of all images in listed order, and their listing with labels and groups.

    Raises ConfigError if `classes` is missing, DataError for images or labels that cannot be used.
    """
    source = _source(given, name=name, classes=classes, image_size=image_size)
    if classes is None:
        raise ConfigError(
            f"{name} {source.root} names its classes: give classes, all names in the order of the model's outputs, as "
            "in classes=['cat', 'dog']; or clean images in a folder or table that has all of them."
        )
    listed = list_images(replace(unsplit_source(source), setting=name), classes)
    listing = replace(listed, name=f"{name} {source.root}", split=None)
    side = image_size or native_size(next(listing.batches())[0])
    images_NHWC = np.empty((len(listing.labels_N), side, side, 3), np.uint8)
    for row, image_HWC in enumerate(iter_decoded(listing, side)):
        images_NHWC[row] = image_HWC
    check_labels(listing, pixel_digests(images_NHWC))
    return images_NHWC, listing


def _source(
    given: str | Path, *, name: str, classes: tuple[str, ...] | None, image_size: int | None
) -> DataSource:
    root = str(local_path(given, name=name))
    return DataSource(name=UNSPLIT, root=root, classes=classes, image_size=image_size)

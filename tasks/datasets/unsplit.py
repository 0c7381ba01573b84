"""List clean images that have no splits of their own: class folders, a CSV or JSON Lines file, Parquet or Arrow tables.

They are split by groups and near-duplicates, always in the same way: about half are the training split, a quarter is
the split `select`, by which settings are chosen, and a quarter is the test split. Images of one group, and images that
show nearly the same, are in one split.
"""

# N images

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import compress, islice

import numpy as np

from tasks.datasets.base import Split
from tasks.datasets.decoding import BATCH, EncodedImage, Listing, iter_decoded, listing_key, native_size
from tasks.datasets.image_folder import describe_folder
from tasks.datasets.image_table import describe_table
from tasks.datasets.labelled_images import ImageSource, as_split, class_names, form_of, list_images
from tasks.datasets.source import UNSPLIT, DatasetInfo, DataSource
from tasks.errors import DataError
from tasks.splits.near_duplicates import Hashes, group_images, perceptual_hashes
from tasks.splits.parts import JUDGE, LEARN, SELECT, Mask, group_numbers, split_clean
from tasks.storage.paths import writing
from tasks.storage.remote import cache_folder

logger = logging.getLogger(__name__)
_PARTS = {"train": LEARN, "select": SELECT, "test": JUDGE}


def unsplit_source(source: DataSource) -> ImageSource:
    """Where the images lie. Raises DataError if no path is given, or if nothing that can be read lies there."""
    images = ImageSource(
        setting="data.root",
        location=source.location("the data set"),
        image_column=source.image_column,
        label_column=source.label_column,
        group_column=source.group_column,
        image_size=source.image_size,
    )
    form_of(images)
    return images


def describe_unsplit(source: DataSource) -> DatasetInfo:
    """The classes and the image size: the names of folders, of labels, or in the schema, and the first image."""
    images = unsplit_source(source)
    form = form_of(images)
    if form == "rows":
        classes = source.classes or class_names(images)
        size = source.image_size or native_size(next(list_images(images, classes).batches())[0])
        return source.info(classes, size)
    described = (describe_folder if form == "folders" else describe_table)(
        as_split(images, form, source.classes)
    )
    return source.info(described.classes, described.image_size)


def list_unsplit(source: DataSource, split: Split) -> Listing:
    """List the images of one split. Raises DataError for data that cannot be used, and if there are too few groups."""
    info = describe_unsplit(source)
    listing = replace(list_images(unsplit_source(source), info.classes), name=UNSPLIT, split=split)
    return _only(listing, _parts(listing, info.image_size) == _PARTS[split])


def _parts(listing: Listing, side: int) -> np.ndarray:
    """int8 [N]: the part of each image."""
    groups_N = group_images(_hashes(listing, side), group_numbers(listing.groups or ()))
    parts_N = split_clean(groups_N, name=f"data.root {listing.files[0].parent}")
    if listing.split == "train":
        counts = ", ".join(f"{int((parts_N == part).sum())} to {word}" for part, word in _PURPOSES)
        logger.info(f"{len(parts_N)} clean images in {int(groups_N.max()) + 1} groups: {counts}")
    return parts_N


_PURPOSES = ((LEARN, "learn from"), (SELECT, "select by"), (JUDGE, "judge by"))


def _hashes(listing: Listing, side: int) -> Hashes:
    """uint64 [N], perceptual hashes, kept in the cache folder: computing them takes as long as decoding all images."""
    shape = (len(listing.labels_N), side, side, 3)
    path = cache_folder() / "decoded" / f"{UNSPLIT}-hashes-{listing_key(listing, shape)}.npy"
    with suppress(OSError, ValueError, EOFError):
        known: Hashes = np.load(path, allow_pickle=False)
        if known.shape == shape[:1] and known.dtype == np.uint64:
            return known
    images = iter_decoded(listing, side)
    hashes = [np.empty(0, np.uint64)]
    while batch := list(islice(images, BATCH)):
        hashes.append(perceptual_hashes(np.stack(batch)))
    found = np.concatenate(hashes)
    with suppress(OSError, DataError), writing(path) as part, part.open("wb") as stream:
        np.save(stream, found)
    return found


def _only(listing: Listing, keep_N: Mask) -> Listing:
    """The images to keep."""

    def batches() -> Iterator[Sequence[EncodedImage]]:
        start = 0
        for batch in listing.batches():
            kept = list(compress(batch, keep_N[start : start + len(batch)]))
            start += len(batch)
            if kept:
                yield kept

    each = len(listing.files) == len(keep_N)  # otherwise the files are tables
    return replace(
        listing,
        labels_N=listing.labels_N[keep_N],
        files=list(compress(listing.files, keep_N)) if each else listing.files,
        batches=batches,
        groups=None if listing.groups is None else list(compress(listing.groups, keep_N)),
        chosen=hashlib.blake2b(np.packbits(keep_N).tobytes(), digest_size=12).hexdigest(),
    )

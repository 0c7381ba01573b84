"""List clean images that have no splits of their own: class folders, a CSV or JSON Lines file, Parquet or Arrow tables.

They are split by groups and near-duplicates, always in the same way: about half are the training split, a quarter is
the split `select`, by which settings are chosen, and a quarter is the test split. Images of one group, and images that
show nearly the same, are in one split.
"""

# N images

from __future__ import annotations

import hashlib
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
from tasks.records import Ints
from tasks.splits.digests import pixel_digests
from tasks.splits.near_duplicates import Hashes, group_images, perceptual_hashes
from tasks.splits.parts import JUDGE, LEARN, SELECT, Mask, group_numbers, split_clean
from tasks.storage.paths import writing
from tasks.storage.remote import cache_folder

PARTS: dict[Split, int] = {"train": LEARN, "select": SELECT, "test": JUDGE}
_HASHED = 1  # change it whenever hashes change, so that kept ones are not reused


def unsplit_source(source: DataSource) -> ImageSource:
    """Where the images lie. Raises DataError if no path is given."""
    return ImageSource(
        setting="data.root",
        location=source.location("the data set"),
        image_column=source.image_column,
        label_column=source.label_column,
        group_column=source.group_column,
        image_size=source.image_size,
    )


def describe_unsplit(source: DataSource) -> DatasetInfo:
    """The classes and the image size: the names of folders, of labels, or in the schema, and the first image."""
    images = unsplit_source(source)
    form = form_of(images)
    if form == "rows":
        classes = source.classes or class_names(images)
        size = source.image_size or native_size(next(list_images(images, classes).batches())[0])
        return source.info(classes, size)
    describe = describe_folder if form == "folders" else describe_table
    found = describe(as_split(images, form, source.classes))
    return source.info(found.classes, found.image_size)


def list_unsplit(source: DataSource, split: Split) -> Listing:
    """List the images of one split. Raises DataError for data that cannot be used, and if there are too few groups."""
    info, images = describe_unsplit(source), unsplit_source(source)
    name = f"data.root {images.location}"
    listing = replace(list_images(images, info.classes), name=name, split=None)
    hashes_N, digests_N = _hashes(listing, info.image_size)
    check_labels(listing, digests_N)
    groups_N = group_images(hashes_N, group_numbers(listing.groups or ()))
    parts_N = split_clean(groups_N, name=name) if listing.parts_N is None else listing.parts_N
    chosen = _only(listing, parts_N == PARTS[split], groups_N)
    return replace(chosen, name=UNSPLIT, split=split)


def _hashes(listing: Listing, side: int) -> tuple[Hashes, Hashes]:
    """uint64 [N] each: perceptual hashes, and digests of the pixels.

    They are kept in the cache folder, with a digest of their own: computing them takes as long as decoding all images.
    """
    count = len(listing.labels_N)
    key = listing_key(listing, (count, side, side, 3))
    path = cache_folder() / "decoded" / f"{UNSPLIT}-hashes-{_HASHED}-{key}.npy"
    with suppress(OSError, ValueError, EOFError):
        known = np.load(path, allow_pickle=False)
        fits = isinstance(known, np.ndarray) and known.dtype == np.uint64 and known.shape == (2 * count + 1,)
        if fits and known[-1] == _digest(known[:-1]):
            return known[:count], known[count:-1]
    images, hashes, digests = iter_decoded(listing, side), [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    while batch := list(islice(images, BATCH)):
        hashes.append(perceptual_hashes(np.stack(batch)))
        digests.append(pixel_digests(np.stack(batch)))
    found = np.concatenate([*hashes, *digests])
    with suppress(OSError, DataError), writing(path) as part, part.open("wb") as stream:
        np.save(stream, np.append(found, _digest(found)))
    return found[:count], found[count:]


def _digest(values: Hashes) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(values.tobytes(), digest_size=8).digest(), "little"))


def check_labels(listing: Listing, digests_N: Hashes) -> None:
    """Raise DataError if the same image has two labels."""
    order = np.lexsort((listing.labels_N, digests_N))
    twice = np.flatnonzero((np.diff(digests_N[order]) == 0) & (np.diff(listing.labels_N[order]) != 0))
    if not len(twice):
        return
    wanted = {int(order[twice[0]]), int(order[twice[0] + 1])}
    images = (image for batch in listing.batches() for image in batch)
    names = [image.name for number, image in enumerate(images) if number in wanted]
    raise DataError(
        f"{listing.name}: the same image has two labels: {' and '.join(names)} ({len(twice)} such images). Keep the "
        "one with the right label."
    )


def _only(listing: Listing, keep_N: Mask, groups_N: Ints) -> Listing:
    """The images to keep, with the numbers of their groups."""

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
        groups=None,
        groups_N=groups_N[keep_N],
        parts_N=None,
        chosen=hashlib.blake2b(np.packbits(keep_N).tobytes(), digest_size=12).hexdigest(),
    )

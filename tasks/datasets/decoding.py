"""Decode a listing of encoded images into one uint8 array, with threads; large arrays are memory-mapped.

Besides the array, memory holds only the encoded images of one batch. An array of more than MAPPED_BYTES is written once
and atomically to tasks.storage.remote.cache_folder(), and all processes of a node map it from there. Its name is a
digest of the files' names, sizes and modification times, of the labels and of the image size.

Rows cycle through the classes (the first image of each, the second of each, …), so that the first rows of a data set
have all of them. Ids are positions in the listing, whatever the order of the rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tasks.datasets.base import ArrayDataset, Split, digest_of
from tasks.datasets.images import UnreadableImageError, decode_image
from tasks.errors import DataError
from tasks.records import Ints, Pixels
from tasks.splits.parts import Parts
from tasks.storage.paths import read_json, write_text, writing
from tasks.storage.remote import cache_folder

# N images, H W C pixels

MAPPED_BYTES = 1 << 30
BATCH = 256  # encoded images in memory at a time
_SHOWN, _ENOUGH = 3, 100  # how many unreadable images are named, and after how many decoding stops
_DECODER = 1  # change it whenever decoding changes, so that cached arrays are not reused


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """An image before it is decoded: its name for messages, and its bytes or its file."""

    name: str
    content: bytes | Path


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The encoded images of a split in a stable order, with their labels.

    image_size: side in pixels of the square that images are resized and cropped to; `None` if all have one size.
    files: the files that hold the images. batches: iterates over the images, from the first one each time it is
    called. groups: the name of each image's group, `None` if there are no groups. groups_N: numbers of groups of
    images that stay together, `None` if each image is alone. parts_N: what each image is for, where the files say so,
    `None` if images are yet to be set aside. passed_over: sentences about files that are not read.
    chosen: a digest of which of the files' images are listed; empty for all. split: `None` if they are not split yet.
    """

    name: str
    split: Split | None
    classes: tuple[str, ...]
    labels_N: Ints
    image_size: int | None
    files: Sequence[Path]
    batches: Callable[[], Iterator[Sequence[EncodedImage]]]
    groups: Sequence[str] | None = None
    groups_N: Ints | None = None
    parts_N: Parts | None = None
    passed_over: tuple[str, ...] = ()
    chosen: str = ""

    @property
    def words(self) -> str:
        """What is listed, for messages."""
        return self.name if self.split is None else f"the {self.split} split of {self.name}"


def decode_listing(listing: Listing) -> ArrayDataset:
    """Decode the listed split. Raises DataError naming images that cannot be used or that differ in size."""
    order_N = rows_by_class(listing.labels_N)
    first = next(listing.batches(), ())
    if not first:
        raise _other_count(listing, 0)
    side = listing.image_size or native_size(first[0])
    shape = (len(order_N), side, side, 3)
    known_digest = None
    if np.prod(shape, dtype=np.int64) > MAPPED_BYTES:
        images, known_digest = _kept(listing, order_N, shape)
    else:
        images = np.empty(shape, np.uint8)
        _fill(images, listing, order_N)
    assert listing.split is not None
    return ArrayDataset(
        name=listing.name,
        split=listing.split,
        classes=listing.classes,
        image_ids_N=order_N,
        labels_N=listing.labels_N[order_N],
        images_NHWC=images,
        known_digest=known_digest,
        passed_over=listing.passed_over,
        groups_N=None if listing.groups_N is None else listing.groups_N[order_N],
    )


def rows_by_class(labels_N: Ints) -> Ints:
    """The listing position of each row: rows cycle through the classes, each in its own order."""
    by_class = np.argsort(labels_N, kind="stable")
    counts = np.bincount(labels_N)
    rank_N = np.empty(len(labels_N), np.int64)
    rank_N[by_class] = np.arange(len(labels_N)) - np.repeat(np.cumsum(counts) - counts, counts)
    order: Ints = np.lexsort((labels_N, rank_N)).astype(np.int64)
    return order


def native_size(first: EncodedImage) -> int:
    """The side in pixels of a data set's images, from its first image. Raises DataError if that is not square."""
    try:
        height, width = map(int, decode_image(first.content).shape[:2])
    except UnreadableImageError as error:
        raise DataError(
            f"{first.name} cannot be read: {error}. Put a whole image there, or remove it."
        ) from error
    if height != width:
        raise DataError(
            f"{first.name} is {width} x {height} px, but a DNN takes squares of one size. Set data.image_size to their "
            "side: the shorter side is resized to it, and the centre is kept."
        )
    return height


def _fill(images_NHWC: Pixels, listing: Listing, order_N: Ints) -> None:
    """Decode all images into their rows."""
    row_of = np.empty(len(order_N), np.int64)
    row_of[order_N] = np.arange(len(order_N))
    for place, image in enumerate(iter_decoded(listing, images_NHWC.shape[1])):
        images_NHWC[row_of[place]] = image


def iter_decoded(listing: Listing, side: int) -> Iterator[Pixels]:
    """Yield the pixels [side, side, 3] of each listed image, with threads.

    Raises DataError, after some images, if images cannot be used, or if there are more or fewer than were listed.
    """
    decode = partial(_decode, side=side, resize=listing.image_size is not None)
    unreadable: list[str] = []
    done, count = 0, len(listing.labels_N)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in listing.batches():
            for decoded in pool.map(decode, batch):
                if isinstance(decoded, str):
                    unreadable.append(decoded)
                elif not unreadable and done < count:
                    yield decoded
                done += 1
            if len(unreadable) >= _ENOUGH:
                break
    if unreadable:
        more = f"; and {len(unreadable) - _SHOWN} more" if len(unreadable) > _SHOWN else ""
        raise DataError(
            f"{len(unreadable)} of {done} images of {listing.words} cannot be used: "
            f"{'; '.join(unreadable[:_SHOWN])}{more}. Correct or remove them."
        )
    if done != count:
        raise _other_count(listing, done)


def _other_count(listing: Listing, done: int) -> DataError:
    return DataError(
        f"{listing.files[0].parent}: {len(listing.labels_N)} images of {listing.words} were listed, but {done} were "
        "read. Run the command again while nothing writes there."
    )


def _decode(encoded: EncodedImage, *, side: int, resize: bool) -> Pixels | str:
    """The pixels [side, side, 3], or a phrase with the image's name and what is wrong with it."""
    try:
        image = decode_image(encoded.content, side if resize else None)
    except UnreadableImageError as error:
        return f"{encoded.name} ({error})"
    height, width, _ = image.shape
    if (height, width) != (side, side):
        return (
            f"{encoded.name} ({width} x {height} px, the first image has {side} x {side}: set data.image_size "
            "to resize all)"
        )
    return image


def _kept(listing: Listing, order_N: Ints, shape: tuple[int, ...]) -> tuple[Pixels, str]:
    """The array, from its file in the cache, which is made if missing; and the array's digest."""
    path = cache_folder() / "decoded" / f"{listing.name}-{listing.split}-{listing_key(listing, shape)}.npy"
    note = path.with_suffix(".json")
    if not (path.is_file() and note.is_file()):
        with writing(path) as part:
            new = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
            _fill(new, listing, order_N)
            new.flush()
            digest = digest_of(new, listing.labels_N[order_N])
            del new
        # Written last, to mark the array as whole; another process would write the same.
        write_text(note, json.dumps({"digest": digest, "files": len(listing.files)}))
    try:
        images: Pixels = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        digest = str(read_json(note)["digest"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(
            f"{path}, or {note.name} beside it, cannot be read ({error}). Delete both; the next run makes them again."
        ) from error
    if images.shape != shape or images.dtype != np.uint8:
        raise DataError(
            f"{path} is {images.dtype} {list(images.shape)}; it must be uint8 {list(shape)}. Delete it; the next run "
            "makes it again."
        )
    return images, digest


def listing_key(listing: Listing, shape: tuple[int, ...]) -> str:
    """A digest of everything that the pixels of listed images depend on."""
    made_of = (_DECODER, shape, listing.image_size, *([listing.chosen] if listing.chosen else ()))
    digest = hashlib.blake2b(repr(made_of).encode(), digest_size=12)
    digest.update(listing.labels_N.astype("<i8").tobytes())
    for file in listing.files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(
                f"{file} cannot be read ({error.strerror}). Put a whole image there, or remove it."
            ) from error
        digest.update(repr((str(file), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()

"""Decode a user's images once into a run's storage, and read them from there.

    <run>/environments/<name>/
        images.bin        uint8 [N, H, W, 3], one image after the other
        index.parquet     per image: its file, the digests of its bytes and of its decoded pixels, its perceptual hash,
                          label, group, whether it is of the holdout, and whether it is a near-duplicate of a clean
                          image that judges, or of one that is learned from or selected by
        unreadable.csv    what could not be read, and why; only if there is any
        manifest.json     written last

Workers read only this folder, never the user's own files.
"""

# N images, H W C pixels

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.datasets.decoding import BATCH, EncodedImage, Listing
from tasks.datasets.images import UnreadableImageError, decode_image
from tasks.environments.environment import UserImages
from tasks.errors import DataError
from tasks.records import Ints, Pixels
from tasks.splits.digests import Digests, pixel_digests
from tasks.splits.near_duplicates import Hashes, group_images, near_duplicates, perceptual_hashes
from tasks.splits.parts import JUDGE, group_numbers, set_aside
from tasks.storage.manifest import Manifest
from tasks.storage.paths import Place, local, read_table, write_table, writing

logger = logging.getLogger(__name__)
IMAGES, INDEX, UNREADABLE = "images.bin", "index.parquet", "unreadable.csv"
LARGEST_BYTES = 1 << 28  # of an image file
AGAIN = "Mine again with --restart."
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class CleanSplits:
    """The clean images of a run, by which a user's images are kept apart from them.

    Attributes:
        digests: uint64 [M], pixel digests of the images of each split, by what to call it in messages.
        judge: uint64 [M], perceptual hashes of the clean images that judge.
        learn: uint64 [M], perceptual hashes of the clean images that are learned from or selected by.
    """

    digests: Mapping[str, Digests] = field(default_factory=dict)
    judge: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))
    learn: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))


@dataclass
class _Decoded:
    """What was read so far, image by image."""

    names: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    pixels: list[int] = field(default_factory=list)  # digests of the decoded pixels
    labels: list[int] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    holdout: list[bool] = field(default_factory=list)
    parts: list[int | None] = field(default_factory=list)  # where the files say what an image is for
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def listing_digest(parts: Mapping[str, Listing]) -> str:
    """Compute a digest of what is listed: names, sizes, labels and groups, but no pixels.

    Args:
        parts: the listed images, by `collect` and `holdout`.

    Returns:
        24 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=12)
    for part, listed in sorted(parts.items()):
        digest.update(repr((part, listed.groups is None)).encode())
        digest.update(np.asarray(listed.labels_N, "<i8").tobytes())
        for group in listed.groups or ():
            digest.update(repr(group).encode())
        if listed.parts_N is not None:
            digest.update(listed.parts_N.tobytes())
        for batch in listed.batches():
            digest.update(repr([(image.name, _size(image)) for image in batch]).encode())
    return digest.hexdigest()


def _size(image: EncodedImage) -> int:
    """The size of an encoded image in bytes, -1 if there is no such file."""
    if isinstance(image.content, bytes):
        return len(image.content)
    try:
        return image.content.stat().st_size
    except OSError:
        return -1


def write_images(
    folder: Place,
    parts: Mapping[str, Listing],
    *,
    name: str,
    image_size: int,
    most_unreadable: float,
    clean: CleanSplits | None = None,
) -> tuple[list[str], dict[str, int], dict[str, Any]]:
    """Decode listed images and write them with their index.

    Args:
        folder: where to write.
        parts: the listed images, by `collect` and, if the user has one, `holdout`.
        name: name of the environment, for messages.
        image_size: side in pixels of the square that each image is resized and cropped to.
        most_unreadable: share of the images that may be unreadable, 0 to 1.
        clean: the clean images, none of which may be among the images, and whose near-duplicates are not used.

    Returns:
        The names of the files, the numbers of images, and facts for the manifest.

    Raises:
        DataError: too many images cannot be read, one image has two labels, the holdout shares images with the rest,
            or a clean image is among them.
    """
    found, hashes = _Decoded(), [np.empty(0, np.uint64)]
    with writing(folder / IMAGES) as part, part.open("wb") as stream:
        for which in ("collect", "holdout"):
            if which in parts:
                held = which == "holdout"
                hashes += _decode_part(found, parts[which], stream, image_size=image_size, holdout=held)
                _check_readable(found, parts, name=name, most=most_unreadable)
        if not found.names:
            raise DataError(f"{name}: none of its images can be read. {_named(found.unreadable)}")
    hashes_N = np.concatenate(hashes)
    groups_N = group_images(hashes_N, group_numbers(found.groups))
    _check_twice(found, name)
    clean = clean or CleanSplits()
    _check_not_clean(found, name, clean.digests)
    judged_N, learned_N = (near_duplicates(hashes_N, others) for others in (clean.judge, clean.learn))
    for near_N, words in (
        (judged_N, "test images, which judge"),
        (learned_N, "images that are learned from"),
    ):
        if near_N.any():
            count = int(near_N.sum())
            logger.warning(f"{name}: {count} images are near-duplicates of clean {words}; they are not used")
    table = pa.table(
        {
            "file": found.names,
            "digest": pa.array(found.digests, pa.binary(16)),
            "pixels": pa.array(found.pixels, pa.uint64()),
            "hash": pa.array(hashes_N, pa.uint64()),
            "label": pa.array(found.labels, pa.int32()),
            "group": pa.array(groups_N, pa.int64()),
            "given_group": pa.array(found.groups, pa.string()),
            "holdout": found.holdout,
            "given_part": pa.array(found.parts, pa.int8()),
            "near_test": judged_N,
            "near_learned": learned_N,
        }
    )
    write_table(folder / INDEX, table)
    files = [IMAGES, INDEX]
    if found.unreadable:
        names, reasons = zip(*found.unreadable, strict=True)
        write_table(folder / UNREADABLE, pa.table({"file": names, "reason": reasons}))
        files.append(UNREADABLE)
        logger.warning(
            f"{name}: {len(found.unreadable)} images cannot be read and are left out, see {folder / UNREADABLE}"
        )
    content = hashlib.blake2b(b"".join(found.digests), digest_size=12)
    content.update(np.asarray(found.labels, "<i8").tobytes())
    rows = {"images": len(found.names), "holdout": sum(found.holdout), "unreadable": len(found.unreadable)}
    facts = {"content": content.hexdigest(), "groups": int(groups_N.max()) + 1, "image_size": image_size}
    return files, rows, facts


def _decode_part(
    found: _Decoded, listed: Listing, stream: BinaryIO, *, image_size: int, holdout: bool
) -> Iterator[np.ndarray]:
    """Decode the images of a part, append their pixels to `stream`, and yield their perceptual hashes by batch."""
    place = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in listed.batches():
            pixels: list[Pixels] = []
            for image, decoded in zip(batch, pool.map(partial(_decode, side=image_size), batch), strict=True):
                if place >= len(listed.labels_N):
                    raise DataError(f"{image.name}: there are more images than were listed. {_QUIET}")
                if isinstance(decoded, str):
                    found.unreadable.append((image.name, decoded))
                else:
                    found.names.append(image.name)
                    found.digests.append(decoded[1])
                    found.labels.append(int(listed.labels_N[place]))
                    found.groups.append(None if listed.groups is None else listed.groups[place])
                    found.holdout.append(holdout)
                    found.parts.append(None if listed.parts_N is None else int(listed.parts_N[place]))
                    pixels.append(decoded[0])
                place += 1
            if pixels:
                images_BHWC = np.stack(pixels)
                stream.write(images_BHWC.data)
                found.pixels += pixel_digests(images_BHWC).tolist()
                yield perceptual_hashes(images_BHWC)
    if place != len(listed.labels_N):
        raise DataError(f"{len(listed.labels_N)} images were listed, but {place} were read. {_QUIET}")


_QUIET = "Run the command again while nothing writes there."


def _decode(image: EncodedImage, *, side: int) -> tuple[Pixels, bytes] | str:
    """The pixels and the digest of the encoded bytes, or what is wrong with the image."""
    try:
        content = image.content if isinstance(image.content, bytes) else _read(image.content)
        return decode_image(content, side), hashlib.blake2b(content, digest_size=16).digest()
    except UnreadableImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror or type(error).__name__


def _read(path: Path) -> bytes:
    if not path.exists():
        raise UnreadableImageError("no such file")
    if not path.is_file():
        raise UnreadableImageError("not a regular file")
    with path.open("rb") as stream:
        content = stream.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise UnreadableImageError(f"more than {LARGEST_BYTES >> 20} MiB")
    return content


def _check_readable(found: _Decoded, parts: Mapping[str, Listing], *, name: str, most: float) -> None:
    """Raise DataError if more than a share of `most` of all listed images cannot be read."""
    total, bad = sum(len(listed.labels_N) for listed in parts.values()), len(found.unreadable)
    if bad > most * total:
        raise DataError(
            f"{name}: {bad} of {total} images cannot be read, more than {most:.0%}. {_named(found.unreadable)} Correct "
            f"or remove them, or allow more with environments.{name}.unreadable."
        )


def _named(unreadable: Sequence[tuple[str, str]]) -> str:
    return f"{_few([f'{file} ({reason})' for file, reason in unreadable])}."


def _check_twice(found: _Decoded, name: str) -> None:
    """Raise DataError for an image that has two labels, or that is both in the holdout and outside of it."""
    first: dict[int, int] = {}
    two_labels, both = [], []
    for row, digest in enumerate(found.pixels):
        other = first.setdefault(digest, row)
        pair = f"{found.names[other]} and {found.names[row]}"
        if found.labels[other] != found.labels[row]:
            two_labels.append(pair)
        if found.holdout[other] != found.holdout[row]:
            both.append(pair)
    if two_labels:
        raise DataError(
            f"{name}: the same image has two labels: {_few(two_labels)}. Keep the one with the right label."
        )
    if both:
        raise DataError(
            f"{name}: the holdout shares images with those to learn from: {_few(both)}. What judges must not be "
            "learned from: remove them from one of the two."
        )


def _check_not_clean(found: _Decoded, name: str, clean: Mapping[str, Digests]) -> None:
    """Raise DataError if images are also among the clean test images, which judge, or those to learn from."""
    for split, digests in clean.items():
        known = set(digests.tolist())
        both = [file for file, digest in zip(found.names, found.pixels, strict=True) if digest in known]
        if both:
            raise DataError(
                f"{name}: {len(both)} of its images are also among the clean {split} images: {_few(both)}. What "
                "judges must not be learned from: remove them from one of the two."
            )


def _few(pairs: Sequence[str]) -> str:
    more = f"; and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    return "; ".join(pairs[:_SHOWN]) + more


def read_images(
    folder: Place, manifest: Manifest, *, name: str, classes: tuple[str, ...], seed: int
) -> UserImages:
    """Read the images of a finished environment.

    Args:
        folder: where `write_images` wrote them.
        manifest: its manifest.
        name: name of the environment.
        classes: names of the classes, in the order of the labels.
        seed: the run's seed, by which images are set aside to judge and to select.

    Returns:
        The environment; its pixels are a memory map.

    Raises:
        DataError: a file does not match the manifest, or there are too few groups to set some aside.
    """
    index = read_table(folder / INDEX, AGAIN)
    labels_N = _ints(index, "label")
    side, count = int(manifest.facts["image_size"]), len(labels_N)
    path = local(folder / IMAGES)
    if count != manifest.rows["images"] or path.stat().st_size != count * side * side * 3:
        raise DataError(f"{folder} does not match its manifest. {AGAIN}")
    groups_N, holdout_N = _ints(index, "group"), index.column("holdout").to_numpy()
    if _PART in index.column_names:
        parts_N = index.column(_PART).to_numpy()
    else:
        judged_N, learned_N = (index.column(f"near_{what}").to_numpy() for what in ("test", "learned"))
        given_N = None
        if "given_part" in index.column_names and not holdout_N.all():
            given = index.column("given_part")
            given_N = (
                None if given.filter(pa.array(~holdout_N)).null_count else given.fill_null(JUDGE).to_numpy()
            )
        parts_N = set_aside(
            groups_N,
            holdout_N,
            name=name,
            seed=seed,
            judged_N=judged_N,
            learned_N=learned_N,
            given_N=given_N,
        )
    return UserImages(
        name=name,
        classes=classes,
        labels_N=labels_N,
        groups_N=groups_N,
        images_NHWC=np.memmap(path, np.uint8, mode="r", shape=(count, side, side, 3)),
        names=tuple(index.column("file").to_pylist()),
        digests_N=index.column("pixels").to_numpy(),
        hashes_N=index.column("hash").to_numpy(),
        parts_N=parts_N,
    )


def copy_what_is_learned(
    folder: Place, source: UserImages, to: Place
) -> tuple[list[str], dict[str, int], dict[str, Any]]:
    """Copy an environment without the images that judge: their pixels, names, labels and digests are 0 or empty.

    Rows keep their numbers, and `read_images` gives them the same parts.

    Args:
        folder: where the environment lies.
        source: the environment.
        to: where to write the copy.

    Returns:
        The names of the files, the numbers of images, and facts for the manifest, as of `write_images`.
    """
    judges_N = source.parts_N == JUDGE
    with writing(to / IMAGES) as part, part.open("wb") as stream:
        for start in range(0, len(judges_N), BATCH):
            batch = slice(start, start + BATCH)
            images = np.where(judges_N[batch, None, None, None], 0, source.images_NHWC[batch])
            stream.write(images.astype(np.uint8, copy=False).data)
    index = read_table(folder / INDEX, AGAIN)
    for place, column in enumerate(index.column_names):
        if column in _OF_AN_IMAGE:
            nothing = pa.scalar(_OF_AN_IMAGE[column], index.schema.field(place).type)
            known = pc.if_else(pa.array(judges_N), nothing, index.column(place))
            index = index.set_column(place, index.schema.field(place), known)
    write_table(to / INDEX, index.append_column(_PART, pa.array(source.parts_N)))
    return [IMAGES, INDEX], {"images": len(judges_N)}, {"image_size": source.image_shape[0]}


# What the index says of a single image, with the value that stands for nothing.
_OF_AN_IMAGE = {"file": "", "digest": bytes(16), "pixels": 0, "hash": 0, "label": 0, "given_group": None}
_PART = "part"  # the column of an index that says what each image is for


def _ints(index: pa.Table, column: str) -> Ints:
    values: Ints = index.column(column).to_numpy().astype(np.int64)
    return values

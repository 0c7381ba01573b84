"""Index columns of failures in, the pixels of any of their rows out, made again from the clean images.

A corrupted image is a function of (seed, image, corruption, severity), so a store may keep the index alone
(`pixels: recomputed`): 19 × 5 × 1.28 M images of ImageNet are a few GB. Each row keeps a digest of its pixels, and what
is made again is held to it, since other versions of a library may round differently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets import Dataset
from tasks.errors import DataError
from tasks.experiences.corrupted_images import corrupted_images
from tasks.records import Ints, PixelRows, Pixels

# N failures, B of them

Digests = NDArray[np.uint64]


def pixel_digests(images_BHWC_u8: Pixels) -> Digests:
    """64 bits of BLAKE2b of every image's bytes, [B]."""
    images = np.ascontiguousarray(images_BHWC_u8)
    found = [hashlib.blake2b(image.data, digest_size=8).digest() for image in images]
    return np.frombuffer(b"".join(found), dtype="<u8").astype(np.uint64)


def digests_of(images_NHWC_u8: PixelRows, *, batch_size: int = 500) -> Digests:
    """As pixel_digests, of many: those that are kept where pixels are recomputed, else of the stored pixels."""
    if isinstance(images_NHWC_u8, RecomputedPixels):
        return images_NHWC_u8.digests_N
    starts = range(0, len(images_NHWC_u8), batch_size)
    parts = [pixel_digests(images_NHWC_u8[start : start + batch_size]) for start in starts]
    return np.concatenate([np.empty(0, dtype=np.uint64), *parts])


def rows_of_images(ids_N: Ints, order_N: Ints, image_ids_B: Ints) -> Ints:
    """Where images stand in a split of these ids, -1 where they do not; `order_N` sorts the split's ids."""
    places = np.minimum(np.searchsorted(ids_N, image_ids_B, sorter=order_N), len(order_N) - 1)
    rows_B = order_N[places]
    found: Ints = np.where(ids_N[rows_B] == image_ids_B, rows_B, -1)
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class RecomputedPixels:
    """Pixels [N, H, W, C] that are made when they are asked for, by a row number, an array of them, or a slice.

    `data` is the split whose images were corrupted, with its table of constants or archive; without it, asking is
    a DataError.
    """

    corruption: str
    image_ids_N: Ints
    severities_N: Ints
    digests_N: Digests
    image_shape: tuple[int, int, int]
    seed: int
    data: Dataset | None = None

    def __len__(self) -> int:
        return len(self.image_ids_N)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.image_shape)

    def with_data(self, data: Dataset) -> RecomputedPixels:
        """The same pixels, of these clean images."""
        return replace(self, data=data)

    def select(self, rows: Ints) -> RecomputedPixels:
        """The index of some rows; no pixel is made."""
        return replace(
            self,
            image_ids_N=self.image_ids_N[rows],
            severities_N=self.severities_N[rows],
            digests_N=self.digests_N[rows],
        )

    def __getitem__(self, rows: Any) -> Pixels:
        wanted = np.arange(len(self))[rows]
        if wanted.ndim == 0:
            one: Pixels = self._made(wanted[None])[0]
            return one
        return self._made(wanted)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Pixels:
        """All pixels, as numpy asks for them."""
        return self[:] if dtype is None else self[:].astype(dtype)

    def _made(self, rows_B: Ints) -> Pixels:
        if self.data is None:
            raise DataError(
                f"The store of {self.corruption} keeps no pixels (mining.pixels: recomputed), and the clean images "
                "that they are made from were not given. Open it with its data set."
            )
        images = np.empty((len(rows_B), *self.image_shape), dtype=np.uint8)
        severities = self.severities_N[rows_B]
        for severity in np.unique(severities):
            here = np.flatnonzero(severities == severity)
            images[here] = corrupted_images(
                self.data,
                self._rows_of(self.image_ids_N[rows_B[here]]),
                corruption=self.corruption,
                severity=int(severity),
                seed=self.seed,
            )
        self._check(images, rows_B)
        return images

    def _rows_of(self, image_ids_B: Ints) -> Ints:
        """Where the images stand in the split."""
        assert self.data is not None
        rows = rows_of_images(self.data.image_ids_N, self._order, image_ids_B)
        missing = image_ids_B[rows < 0]
        if len(missing):
            raise DataError(
                f"The store of {self.corruption} has failures of image {missing[0]}, and the data set that was given "
                f"has no such image among its {len(self._order)}. Give the split that it was mined from."
            )
        return rows

    @cached_property
    def _order(self) -> Ints:
        assert self.data is not None
        order: Ints = np.argsort(self.data.image_ids_N, kind="stable")
        return order

    def _check(self, images_BHWC_u8: Pixels, rows_B: Ints) -> None:
        other = np.flatnonzero(pixel_digests(images_BHWC_u8) != self.digests_N[rows_B])
        if len(other):
            row = rows_B[other[0]]
            raise DataError(
                f"Image {self.image_ids_N[row]} under {self.corruption} of severity {self.severities_N[row]} came out "
                f"with other pixels than were mined ({len(other)} of {len(rows_B)} did). Use the clean images "
                "and the versions of numpy, opencv and pillow that the store's manifest.json names, or mine again with "
                "--restart."
            )


def joined(parts: Sequence[RecomputedPixels]) -> RecomputedPixels:
    """The rows of all parts, in order."""
    return replace(
        parts[0],
        image_ids_N=np.concatenate([p.image_ids_N for p in parts]),
        severities_N=np.concatenate([p.severities_N for p in parts]),
        digests_N=np.concatenate([p.digests_N for p in parts]),
    )


class StackedPixels:
    """The rows of several arrays or memory maps [N, H, W, C], one after the other, without copying them."""

    def __init__(self, parts: Sequence[PixelRows]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(p) for p in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._parts[0].shape[1:])

    def __getitem__(self, rows: Any) -> Pixels:
        wanted = np.arange(len(self))[rows]
        images = np.empty((*wanted.shape, *self.shape[1:]), dtype=np.uint8)
        part_of = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(part_of):
            here = part_of == number
            first = self._ends[number] - len(self._parts[number])
            images[here] = self._parts[number][wanted[here] - first]
        return images

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Pixels:
        """All pixels, as numpy asks for them."""
        return self[:] if dtype is None else self[:].astype(dtype)

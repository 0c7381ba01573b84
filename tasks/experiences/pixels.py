"""Recompute the pixels of failures from the clean images.

A corrupted image is a function of (seed, image, corruption, severity), so a store may keep only the index
(`pixels: recomputed`): 19 × 5 × 1.28 M images of ImageNet then take a few GB. Each row keeps a digest of its pixels,
and recomputed pixels are checked against it, since other versions of a library may round differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tasks.environments import Environment
from tasks.errors import DataError
from tasks.records import Ints, PixelRows, Pixels
from tasks.splits.digests import Digests, pixel_digests

# N failures, B of them


def digests_of(images_NHWC: PixelRows, *, batch_size: int = 500) -> Digests:
    """The digests [N] of many images: the recorded ones if pixels are recomputed, else those of the stored pixels."""
    if isinstance(images_NHWC, RecomputedPixels):
        return images_NHWC.digests_N
    starts = range(0, len(images_NHWC), batch_size)
    parts = [pixel_digests(images_NHWC[start : start + batch_size]) for start in starts]
    return np.concatenate([np.empty(0, dtype=np.uint64), *parts])


def rows_of_images(ids_N: Ints, image_ids_B: Ints, *, order_N: Ints | None = None) -> Ints:
    """The rows [B] of images in a split with ids `ids_N`, -1 for images it lacks.

    order_N: the order that sorts the split's ids, if it is known already.
    """
    order_N = np.argsort(ids_N, kind="stable") if order_N is None else order_N
    places = np.minimum(np.searchsorted(ids_N, image_ids_B, sorter=order_N), len(order_N) - 1)
    rows_B = order_N[places]
    rows: Ints = np.where(ids_N[rows_B] == image_ids_B, rows_B, -1)
    return rows


@dataclass(frozen=True, kw_only=True, eq=False)
class RecomputedPixels:
    """Pixels [N, H, W, C] uint8 that are recomputed when indexed with a row number, an array of them, or a slice.

    `source` is the environment that was mined. Indexing without it, or pixels that differ from their digests, raises
    DataError.
    """

    corruption: str
    image_ids_N: Ints
    severities_N: Ints
    digests_N: Digests
    image_shape: tuple[int, int, int]
    seed: int
    source: Environment | None = None

    def __len__(self) -> int:
        return len(self.image_ids_N)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.image_shape)

    def read_from(self, source: Environment) -> RecomputedPixels:
        """The same pixels, recomputed by this environment."""
        return replace(self, source=source)

    def select(self, rows: Ints) -> RecomputedPixels:
        """The given rows; no pixels are computed."""
        return replace(
            self,
            image_ids_N=self.image_ids_N[rows],
            severities_N=self.severities_N[rows],
            digests_N=self.digests_N[rows],
        )

    def __getitem__(self, rows: Any) -> Pixels:
        wanted = np.arange(len(self))[rows]
        if wanted.ndim == 0:
            one: Pixels = self._computed(wanted[None])[0]
            return one
        return self._computed(wanted)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Pixels:
        """All pixels, for conversion by NumPy."""
        return self[:] if dtype is None else self[:].astype(dtype)

    def _computed(self, rows_B: Ints) -> Pixels:
        if self.source is None:
            raise DataError(
                f"The store of {self.corruption} keeps no pixels (mining.pixels: recomputed), and the clean images "
                "from which to recompute them were not given. Open it with its data set."
            )
        if self.image_shape != self.source.image_shape:
            raise DataError(
                f"The store of {self.corruption} has images of {list(self.image_shape)}, and the given data set of "
                f"{list(self.source.image_shape)}. Give the split that it was mined from."
            )
        images = np.empty((len(rows_B), *self.image_shape), dtype=np.uint8)
        severities = self.severities_N[rows_B]
        for severity in np.unique(severities):
            here = np.flatnonzero(severities == severity)
            images[here] = self.source.images(self._rows_of(self.image_ids_N[rows_B[here]]), int(severity))
        self._check(images, rows_B)
        return images

    def _rows_of(self, image_ids_B: Ints) -> Ints:
        """The rows of the images in the split."""
        assert self.source is not None
        rows = rows_of_images(self.source.image_ids_N, image_ids_B, order_N=self._order)
        missing = image_ids_B[rows < 0]
        if len(missing):
            raise DataError(
                f"The store of {self.corruption} has failures of image {missing[0]}, but the given data set has no "
                f"such image among its {len(self._order)}. Give the split that it was mined from."
            )
        return rows

    @cached_property
    def _order(self) -> Ints:
        assert self.source is not None
        order: Ints = np.argsort(self.source.image_ids_N, kind="stable")
        return order

    def _check(self, images_BHWC_u8: Pixels, rows_B: Ints) -> None:
        other = np.flatnonzero(pixel_digests(images_BHWC_u8) != self.digests_N[rows_B])
        if len(other):
            row = rows_B[other[0]]
            raise DataError(
                f"Image {self.image_ids_N[row]} under {self.corruption} of severity {self.severities_N[row]} has other "
                f"pixels than were mined ({len(other)} of {len(rows_B)} images do). Use the clean images and the "
                "versions of numpy, opencv and pillow that the store's manifest.json names, or mine again with "
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
    """Several arrays or memory maps [N, H, W, C], stacked without copying them; indexing copies the given rows."""

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
        """All pixels, for conversion by NumPy."""
        return self[:] if dtype is None else self[:].astype(dtype)

"""Pixels and labels in, one split of a data set behind one interface out."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from tasks.errors import DataError
from tasks.records import Ints, Pixels

if TYPE_CHECKING:
    from tasks.datasets.archives import Archive

# N images, B of them, H W C pixels

Split = Literal["train", "test"]
Colour = tuple[float, float, float]


class Dataset(Protocol):
    """Labelled images of one split. Ids are stable: the row in the published order."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> Split: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def image_ids_N(self) -> Ints: ...
    @property
    def labels_N(self) -> Ints: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def corruption_table(self) -> str | None:
        """Constants for its corrupted images, where they are not those for its size."""
        ...

    @property
    def archive(self) -> Archive | None:
        """A published archive that its corrupted images come from, in place of generated ones."""
        ...

    def images(self, rows: Ints | slice) -> Pixels:
        """Pixels [B, H, W, C] uint8 of the given rows."""
        ...


@dataclass(frozen=True, kw_only=True)
class ArrayDataset:
    """A split as one array, in memory or mapped from a file.

    `known_digest` is the digest of a mapped array, taken when it was written: it need not be read for it again.
    `passed_over` says in sentences what lies beside the images and was not read; it is part of no digest.
    """

    name: str
    split: Split
    classes: tuple[str, ...]
    image_ids_N: Ints
    labels_N: Ints
    images_NHWC_u8: Pixels
    corruption_table: str | None = None
    archive: Archive | None = None
    known_digest: str | None = None
    passed_over: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_arrays(self)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.images_NHWC_u8.shape[1:]
        return height, width, channels

    def images(self, rows: Ints | slice) -> Pixels:
        return self.images_NHWC_u8[rows]

    def digest(self) -> str:
        """A digest of pixels and labels."""
        return self.known_digest or digest_of(self.images_NHWC_u8, self.labels_N)

    def head(self, num_images: int) -> ArrayDataset:
        """The first `num_images` rows (all of them when there are fewer)."""
        whole = num_images >= len(self.labels_N)
        return dataclasses.replace(
            self,
            image_ids_N=self.image_ids_N[:num_images],
            labels_N=self.labels_N[:num_images],
            images_NHWC_u8=self.images_NHWC_u8[:num_images],
            known_digest=self.known_digest if whole else None,
        )


def digest_of(images_NHWC_u8: Pixels, labels_N: Ints) -> str:
    """A digest of pixels and labels."""
    digest = hashlib.blake2b(np.ascontiguousarray(images_NHWC_u8).data, digest_size=12)
    digest.update(labels_N.tobytes())
    return digest.hexdigest()


def _check_arrays(data: ArrayDataset) -> None:
    images, labels = data.images_NHWC_u8, data.labels_N
    where = f"{data.name} {data.split}"
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] != 3:
        raise DataError(
            f"{where}: images are {images.dtype} {images.shape}; they must be uint8 [N, H, W, 3]."
        )
    if not len(images) == len(labels) == len(data.image_ids_N):
        raise DataError(
            f"{where}: {len(images)} images but {len(labels)} labels; there must be one for each."
        )
    outside = np.flatnonzero((labels < 0) | (labels >= len(data.classes)))
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"{where}: the label of image {row} is {int(labels[row])}, outside the {len(data.classes)} classes "
            f"0..{len(data.classes) - 1} ({len(outside)} such labels). Correct the labels, or name another data set."
        )

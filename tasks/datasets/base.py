"""The interface of one split of a data set, and its implementation by an array."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DataError
from tasks.records import Ints, Pixels

if TYPE_CHECKING:
    from tasks.datasets.archives import Archive

# N images, B of them, H W C pixels

# Only images without splits of their own have images to `select` by.
Split = Literal["train", "test", "select"]
Colour = tuple[float, float, float]


class Dataset(Protocol):
    """Labelled images of one split.

    An image's id is its position in the published order, so ids do not change if rows are dropped or reordered.
    """

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
        """The table of corruption constants, `None` for the table that suits the image size."""
        ...

    @property
    def archive(self) -> Archive | None:
        """A published archive of corrupted images to use instead of generated ones, or `None`."""
        ...

    @property
    def groups_N(self) -> Ints | None:
        """Numbers of groups of images that stay together, `None` if each image is alone."""
        ...

    def images(self, rows: Ints | slice) -> Pixels:
        """Read the pixels [B, H, W, C] uint8 of the given rows."""
        ...


@dataclass(frozen=True, kw_only=True)
class ArrayDataset:
    """One split of a data set as an array, in memory or memory-mapped.

    Attributes:
        name: name of the data set.
        split: `train`, `test` or `select`.
        classes: names of the classes, in the order of the labels.
        image_ids_N: int64 [N], the position of each image in the published order.
        labels_N: int64 [N], in 0..len(classes) - 1.
        images_NHWC: uint8 [N, H, W, 3], RGB.
        corruption_table: table of corruption constants; `None` for the table that suits the image size.
        archive: published corrupted images to use instead of generated ones; `None` for generated ones.
        known_digest: digest of a memory-mapped array, computed when it was written, so that `digest` need not read the
            array; `None` if unknown.
        passed_over: sentences about files that lie beside the images and were not read. No digest includes them.
        groups_N: int64 [N], numbers of groups of images that stay together; `None` if each image is alone.

    Raises:
        DataError: the images are not uint8 [N, H, W, 3], the numbers of images, labels and ids differ, or a label is
            not the number of a class.
    """

    name: str
    split: Split
    classes: tuple[str, ...]
    image_ids_N: Ints
    labels_N: Ints
    images_NHWC: Pixels
    corruption_table: str | None = None
    archive: Archive | None = None
    known_digest: str | None = None
    passed_over: tuple[str, ...] = ()
    groups_N: Ints | None = None

    def __post_init__(self) -> None:
        _check_arrays(self)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, 3) in pixels."""
        height, width, channels = self.images_NHWC.shape[1:]
        return height, width, channels

    def images(self, rows: Ints | slice) -> Pixels:
        """Read the pixels of some rows.

        Args:
            rows: int64 [B] row numbers, or a slice.

        Returns:
            uint8 [B, H, W, 3], RGB; a view for a slice, else a copy.
        """
        return self.images_NHWC[rows]

    def digest(self) -> str:
        """Compute a digest of pixels, labels and groups: 24 hexadecimal digits."""
        digest = self.known_digest or digest_of(self.images_NHWC, self.labels_N)
        if self.groups_N is None:
            return digest
        return hashlib.blake2b(digest.encode() + self.groups_N.tobytes(), digest_size=12).hexdigest()

    def head(self, num_images: int) -> ArrayDataset:
        """Take the first rows.

        Args:
            num_images: number of rows.

        Returns:
            A data set with the first `num_images` rows, or with all rows if there are fewer.
        """
        whole = num_images >= len(self.labels_N)
        return dataclasses.replace(
            self,
            image_ids_N=self.image_ids_N[:num_images],
            labels_N=self.labels_N[:num_images],
            images_NHWC=self.images_NHWC[:num_images],
            known_digest=self.known_digest if whole else None,
            groups_N=None if self.groups_N is None else self.groups_N[:num_images],
        )


def groups_of(data: Dataset) -> Ints:
    """The number of each image's group [N]; its id if each image is alone."""
    return data.image_ids_N if data.groups_N is None else data.groups_N


def digest_of(images_NHWC: Pixels, labels_N: Ints) -> str:
    """A digest of pixels and labels: 24 hexadecimal digits."""
    digest = hashlib.blake2b(np.ascontiguousarray(images_NHWC).data, digest_size=12)
    digest.update(labels_N.tobytes())
    return digest.hexdigest()


def whole_labels(labels: NDArray[Any], *, where: str) -> Ints:
    """Labels of any integer type as int64 [N]. Raises DataError for other types and shapes: nothing is rounded."""
    if labels.ndim == 1 and labels.dtype.kind in "iu" and (labels <= np.iinfo(np.int64).max).all():
        return labels.astype(np.int64)
    remedy = ""
    if labels.ndim == 2 and labels.shape[1] == 1:
        remedy = " labels[:, 0] has that shape."
    elif labels.ndim == 2:
        remedy = " Of one-hot rows, labels.argmax(1) makes them."
    raise DataError(
        f"{where}: labels are {labels.dtype} {list(labels.shape)}; they must be whole numbers [N], the class of each "
        f"image.{remedy}"
    )


def _check_arrays(data: ArrayDataset) -> None:
    images, labels = data.images_NHWC, data.labels_N
    where = f"{data.name} {data.split}"
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] != 3:
        raise DataError(
            f"{where}: images are {images.dtype} {images.shape}; they must be uint8 [N, H, W, 3]."
        )
    if not len(images):
        raise DataError(f"{where} has no images. Give the folder or file of a data set that has some.")
    for name, values in (("labels", labels), ("image ids", data.image_ids_N)):
        if len(values) != len(images):
            raise DataError(
                f"{where}: {len(images)} images but {len(values)} {name}; there must be one per image."
            )
    outside = np.flatnonzero((labels < 0) | (labels >= len(data.classes)))
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"{where}: the label of image {row} is {int(labels[row])}, outside the {len(data.classes)} classes "
            f"0..{len(data.classes) - 1} ({len(outside)} such labels). Correct the labels, or name another data set."
        )

"""Define what an environment is to the other rooms: labelled images that are read by row and severity.

    CorruptedImages   a split of a data set under a corruption, computed or read from a published archive
    UserImages        images that a user collected, as they are

Some images of an environment may be set aside to judge: nothing learns from them, and nothing is chosen by them.
"""

# N images of the environment, B rows of them

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from tasks import corruptions
from tasks.corruptions import corrupt
from tasks.datasets import ArrayDataset, Dataset, corruption_table_of
from tasks.datasets.archives import Archive
from tasks.datasets.base import groups_of
from tasks.errors import ConfigError, DataError
from tasks.records import Ints, Pixels
from tasks.splits.digests import Digests
from tasks.splits.near_duplicates import Hashes, near_duplicates
from tasks.splits.parts import JUDGE, LEARN, SELECT, UNUSED, Mask, Parts, judge_half

AS_GIVEN = 0  # the severity of images that a user collected
USERS = "environment"  # the category of a user's own environments


class Environment(Protocol):
    """Labelled images of one setting.

    An image's id identifies it in stored failures. `groups_N` numbers the images that belong together, such as those
    of one day: a group is never both learned from and judged on.
    """

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def severities(self) -> tuple[int, ...]:
        """The severities that its images exist in."""
        ...

    @property
    def image_ids_N(self) -> Ints: ...
    @property
    def labels_N(self) -> Ints: ...
    @property
    def groups_N(self) -> Ints: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def parts_N(self) -> Parts:
        """int8 [N], what each image is for: LEARN, SELECT, JUDGE or UNUSED.

        If no image is to SELECT, a repair draws its validation part from the failures to learn from.
        """
        ...

    def images(self, rows_B: Ints, severity: int) -> Pixels:
        """Read the pixels [B, H, W, C] uint8 of the given rows."""
        ...


@dataclass(frozen=True, kw_only=True)
class CorruptedImages:
    """The images of a split under a corruption.

    Attributes:
        name: name of the environment.
        corruption: published name of the corruption.
        data: the split; if it has an archive, the images are read from that.
        severities: the severities that are pooled, each 1 to 5.
        seed: seed of the corruptions. An archive ignores it.
        parts_N: int8 [N], LEARN or JUDGE.
    """

    name: str
    corruption: str
    data: Dataset
    severities: tuple[int, ...]
    seed: int
    parts_N: Parts

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.data.classes

    @property
    def image_ids_N(self) -> Ints:
        """int64 [N], the position of each image in its published split."""
        return self.data.image_ids_N

    @property
    def labels_N(self) -> Ints:
        """int64 [N]."""
        return self.data.labels_N

    @property
    def groups_N(self) -> Ints:
        """int64 [N], the number of each image's group; the image's id if the data set has no groups."""
        return groups_of(self.data)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) in pixels."""
        return self.data.image_shape

    def images(self, rows_B: Ints, severity: int) -> Pixels:
        """Compute or read the corrupted pixels of some rows.

        Args:
            rows_B: int64 [B] row numbers of the split.
            severity: 1 to 5.

        Returns:
            uint8 [B, H, W, 3], RGB.

        Raises:
            ConfigError: the severity is out of range.
            DataError: the images are too small, or the archive cannot be read.
        """
        return corrupted_images(
            self.data, rows_B, corruption=self.corruption, severity=severity, seed=self.seed
        )


def corrupted_images(data: Dataset, rows_B: Ints, *, corruption: str, severity: int, seed: int) -> Pixels:
    """Compute, or read from the split's archive, the corrupted pixels of some rows of a split.

    Args:
        data: the split of clean images.
        rows_B: int64 [B] row numbers of the split.
        corruption: published name of the corruption.
        severity: 1 to 5.
        seed: seed of the corruptions. An archive ignores it.

    Returns:
        uint8 [B, H, W, 3], RGB.

    Raises:
        ConfigError: the severity is out of range.
        DataError: the images are too small, or the archive cannot be read.
    """
    ids = data.image_ids_N[rows_B]
    if data.archive is not None:
        return data.archive.images(ids, corruption=corruption, severity=severity)
    return corrupt(
        data.images(rows_B),
        image_ids_B=ids,
        corruption=corruption,
        severity=severity,
        seed=seed,
        table=corruption_table_of(data),
    )


def corrupted(
    data: Dataset,
    corruption: str,
    *,
    severities: Sequence[int],
    seed: int,
    name: str | None = None,
    parts_N: Parts | None = None,
) -> CorruptedImages:
    """Describe a split under a corruption.

    Args:
        data: the split of clean images.
        corruption: published name of the corruption.
        severities: the severities that are pooled, each 1 to 5.
        seed: seed of the corruptions.
        name: name of the environment; `None` for that of the corruption.
        parts_N: int8 [N], LEARN or JUDGE; `None` if no image is set aside.

    Returns:
        The environment. No image is computed yet.
    """
    return CorruptedImages(
        name=name or corruption,
        corruption=corruption,
        data=data,
        severities=tuple(severities),
        seed=seed,
        parts_N=judge_half(data.image_ids_N, fraction=None, seed=seed) if parts_N is None else parts_N,
    )


@dataclass(frozen=True, kw_only=True)
class UserImages:
    """Images that a user collected, decoded to one size.

    Attributes:
        name: name of the environment.
        classes: names of the classes, in the order of the labels.
        labels_N: int64 [N].
        groups_N: int64 [N], the number of each image's group.
        images_NHWC: uint8 [N, H, W, 3], RGB; usually a memory map.
        names: the name of each image's file, or its row in a table.
        digests_N: uint64 [N], the digest of each image's pixels.
        hashes_N: uint64 [N], the perceptual hash of each image.
        parts_N: int8 [N]: LEARN, SELECT, JUDGE or UNUSED.
    """

    name: str
    classes: tuple[str, ...]
    labels_N: Ints
    groups_N: Ints
    images_NHWC: Pixels
    names: tuple[str, ...]
    digests_N: Digests
    hashes_N: Hashes
    parts_N: Parts

    @property
    def severities(self) -> tuple[int, ...]:
        """One pseudo-severity: the images as they were given."""
        return (AS_GIVEN,)

    @property
    def image_ids_N(self) -> Ints:
        """int64 [N], the position of each image in the environment."""
        return np.arange(len(self.labels_N))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, 3) in pixels."""
        height, width, channels = self.images_NHWC.shape[1:]
        return height, width, channels

    @property
    def learned_N(self) -> Mask:
        """bool [N], the images that are learned from or selected by."""
        return np.isin(self.parts_N, (LEARN, SELECT))

    def apart_from(self, others: Sequence[UserImages]) -> UserImages:
        """Leave out the images to learn from and to select by that are near-duplicates of others that judge.

        Args:
            others: environments whose images judge repairs that learn from these.

        Returns:
            The same images, with these UNUSED.
        """
        judges = [other.hashes_N[other.parts_N == JUDGE] for other in others]
        near_N = near_duplicates(self.hashes_N, np.concatenate([np.empty(0, np.uint64), *judges]))
        return replace(self, parts_N=np.where(near_N & self.learned_N, np.int8(UNUSED), self.parts_N))

    def without(self, names: Sequence[str]) -> UserImages:
        """Leave out the images to learn from and to select by that have one of these names.

        Args:
            names: file names, as in `names`; images that judge stay.

        Returns:
            The same images, with these UNUSED.
        """
        named_N = np.isin(np.asarray(self.names, dtype=object), list(names))
        return replace(self, parts_N=np.where(named_N & self.learned_N, np.int8(UNUSED), self.parts_N))

    def images(self, rows_B: Ints, severity: int) -> Pixels:  # noqa: ARG002 - they exist in one severity
        """Read the pixels of some rows.

        Args:
            rows_B: int64 [B] row numbers.
            severity: ignored.

        Returns:
            uint8 [B, H, W, 3], RGB; a copy.
        """
        return np.asarray(self.images_NHWC[rows_B])


def category_of(name: str) -> str:
    """Find the category of an environment.

    Args:
        name: its name.

    Returns:
        The category of a corruption; `environment` for a user's own environment.
    """
    try:
        return corruptions.category_of(name)
    except ConfigError:  # no corruption, or a plugin that is not installed here
        return USERS


def check_archive(
    archive: Archive, data: ArrayDataset, *, needed: tuple[str, ...], setting: str = "data.archive"
) -> None:
    """Check that an archive belongs to a split and has the corruptions that are needed.

    A row's id is its position in the published split, so the archive also serves a part of the split (the sample).

    Args:
        archive: the archive.
        data: the split of clean images.
        needed: published names of corruptions.
        setting: the setting that names the archive, for messages.

    Raises:
        DataError: it lacks one, or its images or labels are those of another split.
    """
    missing = [name for name in needed if name not in archive.corruptions]
    if missing:
        raise DataError(
            f"{setting} {archive.root} has no {', '.join(missing)}; it has {', '.join(archive.corruptions)}. "
            "Name only these in targets and evaluate.others, or add the missing ones."
        )
    ids = data.image_ids_N
    actual = f"{len(archive.labels_N)} images per severity, of shape {list(archive.image_shape)}"
    if archive.image_shape != data.image_shape or ids.max(initial=0) >= len(archive.labels_N):
        raise DataError(
            f"{setting} {archive.root} has {actual}; the {data.split} split of {data.name} has ids up "
            f"to {ids.max(initial=0)} and images of shape {list(data.image_shape)}. Give the archive of that data set."
        )
    wrong = int((archive.labels_N[ids] != data.labels_N).sum())
    if wrong:
        raise DataError(
            f"The labels of {setting} {archive.root} differ from those of the {data.split} split of {data.name} for "
            f"{wrong} of {len(ids)} images. Give the archive of that data set, in its published order."
        )

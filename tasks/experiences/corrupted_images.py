"""Corrupt images of a data set, or read them from a published archive of corrupted images."""

from __future__ import annotations

from tasks.corruptions import corrupt
from tasks.datasets import ArrayDataset, Dataset, corruption_table_of
from tasks.datasets.archives import Archive
from tasks.errors import DataError
from tasks.records import Ints, Pixels

# N images of the split, B rows


def corrupted_images(data: Dataset, rows_B: Ints, *, corruption: str, severity: int, seed: int) -> Pixels:
    """Pixels [B, H, W, 3] uint8 of the rows under the corruption. An archive ignores `seed`."""
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


def check_archive(archive: Archive, data: ArrayDataset, *, needed: tuple[str, ...]) -> None:
    """Raise DataError unless the archive belongs to this split and has all the corruptions that are needed.

    A row's id is its position in the published split, so the archive also serves a part of the split (the sample).
    """
    missing = [name for name in needed if name not in archive.corruptions]
    if missing:
        raise DataError(
            f"data.archive {archive.root} has no {', '.join(missing)}; it has {', '.join(archive.corruptions)}. "
            "Name only these in targets and evaluate.others, or add the missing ones."
        )
    ids = data.image_ids_N
    actual = f"{len(archive.labels_N)} images per severity, of shape {list(archive.image_shape)}"
    if archive.image_shape != data.image_shape or ids.max(initial=0) >= len(archive.labels_N):
        raise DataError(
            f"data.archive {archive.root} has {actual}; the {data.split} split of {data.name} has ids up "
            f"to {ids.max(initial=0)} and images of shape {list(data.image_shape)}. Give the archive of that data set."
        )
    wrong = int((archive.labels_N[ids] != data.labels_N).sum())
    if wrong:
        raise DataError(
            f"The labels of data.archive {archive.root} differ from those of the {data.split} split of {data.name} for "
            f"{wrong} of {len(ids)} images. Give the archive of that data set, in its published order."
        )

"""A data set's rows, a corruption and a severity in, the corrupted images out: generated, or of a published archive."""

from __future__ import annotations

from tasks.corruptions import corrupt
from tasks.datasets import ArrayDataset, Dataset, corruption_table_of
from tasks.datasets.archives import Archive
from tasks.errors import DataError
from tasks.records import Ints, Pixels

# N images of the split, B rows


def corrupted_images(data: Dataset, rows_B: Ints, *, corruption: str, severity: int, seed: int) -> Pixels:
    """Pixels [B, H, W, 3] uint8 of the rows under the corruption; `seed` is of no account to an archive."""
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
    """The archive is of this split and has the corruptions that are needed, or a DataError says what is not so.

    A row's id is its place in the published split, so a part of the split (the sample) can be checked and used.
    """
    missing = [name for name in needed if name not in archive.corruptions]
    if missing:
        raise DataError(
            f"data.archive {archive.root} has no {', '.join(missing)}; it has {', '.join(archive.corruptions)}. "
            "Name those in targets and evaluate.others, or add what is missing."
        )
    ids = data.image_ids_N
    found = f"{len(archive.labels_N)} images a severity of {list(archive.image_shape)}"
    if archive.image_shape != data.image_shape or ids.max(initial=0) >= len(archive.labels_N):
        raise DataError(
            f"data.archive {archive.root} has {found}; the {data.split} split of {data.name} has ids up to "
            f"{ids.max(initial=0)} and images of {list(data.image_shape)}. Give the archive of that data set."
        )
    wrong = int((archive.labels_N[ids] != data.labels_N).sum())
    if wrong:
        raise DataError(
            f"data.archive {archive.root} has other labels than the {data.split} split of {data.name} for {wrong} of "
            f"{len(ids)} images. Give the archive of that data set, in its published order."
        )

"""Writes and reads features (Parquet with checksums) and moments (one NumPy array)."""

from __future__ import annotations

from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.distances.frechet import Doubles, Moments
from tasks.errors import DataError
from tasks.records import Ints
from tasks.storage.paths import Place, local, writing

# N examples, D features, R rows of a factor

AGAIN = "Score again, which rewrites damaged files."


def write_features(path: Place, features_ND: NDArray[np.float32], image_ids_N: Ints) -> None:
    """Write one row per example, with the id of its image; the file appears only when it is complete."""
    flat = pa.array(features_ND.astype(np.float32).reshape(-1), pa.float32())
    column = pa.FixedSizeListArray.from_arrays(flat, features_ND.shape[1])
    table = pa.table({"image_id": pa.array(image_ids_N, pa.int64()), "features": column})
    with writing(path) as part:
        pq.write_table(table, part, write_page_checksum=True)


def read_features(path: Place) -> tuple[NDArray[np.float32], Ints]:
    """Features [N, D] float32 and image ids [N]. Raises DataError if the file is missing or damaged."""
    try:
        table = pq.read_table(local(path), page_checksum_verification=True)
        column = table["features"].combine_chunks()
        features: NDArray[np.float32] = column.values.to_numpy().reshape(-1, column.type.list_size)
        ids: Ints = table["image_id"].to_numpy()
    except (OSError, pa.ArrowException, KeyError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is missing or damaged ({' '.join(str(error).split())}). {AGAIN}") from error
    return features, ids


def write_moments(path: Place, moments: Moments, *, short: bool = False) -> None:
    """Write moments as an array [1 + 1 + R, D] float64: the count (repeated D times), the mean, the factor.

    short: as float32, in half the space.
    """
    count_D = np.full_like(moments.mean_D, moments.count)
    rows = np.vstack([count_D, moments.mean_D, moments.factor_RD])
    with writing(path) as part, part.open("wb") as stream:
        np.save(stream, rows.astype(np.float32) if short else rows, allow_pickle=False)


def read_moments(path: Place) -> Moments:
    """The moments in a file of `write_moments`, memory-mapped. Raises DataError if it is missing or damaged."""
    try:
        rows = cast(Doubles, np.load(local(path), mmap_mode="r", allow_pickle=False))
        rows = rows if rows.dtype == np.float64 else rows.astype(np.float64)
        return Moments(count=int(rows[0, 0]), mean_D=rows[1], factor_RD=rows[2:])
    except (OSError, ValueError, IndexError, EOFError) as error:
        raise DataError(f"{path} is missing or damaged ({error}). {AGAIN}") from error

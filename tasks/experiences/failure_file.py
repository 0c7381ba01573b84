"""Write failures to one Arrow file, and read them back as a memory map.

The file is uncompressed and has one record batch, so any row can be read by its number without reading the others. It
has the index columns, and either the pixels or (`pixels: recomputed`) their digests.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.errors import DataError
from tasks.experiences.pixels import RecomputedPixels
from tasks.records import Failures, Ints, PixelRows, Pixels, failure_schema
from tasks.storage.paths import Place, local, parse_json, writing

# N failures

CHUNK = 4096  # rows of pixels that are copied at a time


def write_failures(
    path: Place,
    failures: Failures,
    *,
    rows: Ints | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the given rows (all if `None`) to one file, atomically.

    More than `CHUNK` rows of pixels go through a scratch file, so that memory does not grow with the number of rows.
    """
    rows_N = np.arange(len(failures)) if rows is None else rows
    images = failures.images_NHWC
    if isinstance(images, RecomputedPixels):
        column = pa.array(images.digests_N[rows_N], pa.uint64())
        _write(path, failures, rows_N, column, {"seed": images.seed, **(metadata or {})})
        return
    with _gathered(images, None if rows is None else rows_N) as gathered:
        size = int(np.prod(gathered.shape[1:]))
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(size), len(gathered), [None, pa.py_buffer(gathered.reshape(-1))]
        )
        _write(path, failures, rows_N, column, metadata or {})


def _write(path: Place, failures: Failures, rows_N: Ints, pixels: pa.Array, facts: Mapping[str, Any]) -> None:
    columns = [
        pa.array(failures.image_ids_N[rows_N], pa.int64()),
        pa.array(failures.severities_N[rows_N], pa.int8()),
        pa.array(failures.labels_N[rows_N], pa.int32()),
        pa.array(failures.predicted_N[rows_N], pa.int32()),
        pixels,
    ]
    schema = failure_schema(failures.images_NHWC.shape[1:], stored=pixels.type != pa.uint64())
    texts = {"corruption": failures.corruption, "facts": json.dumps(dict(facts))}
    schema = schema.with_metadata(
        {**(schema.metadata or {}), **{k.encode(): v.encode() for k, v in texts.items()}}
    )
    with writing(path) as part, pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))


@contextmanager
def _gathered(images: PixelRows, rows: Ints | None) -> Iterator[Pixels]:
    """The rows' pixels as one array: in memory if there are few rows, else in a memory-mapped scratch file."""
    if rows is None and isinstance(images, np.ndarray):
        yield np.ascontiguousarray(images)
        return
    wanted = np.arange(len(images)) if rows is None else rows
    shape = (len(wanted), *images.shape[1:])
    with tempfile.TemporaryFile() as scratch:
        small = len(wanted) <= CHUNK
        array: Pixels = (
            np.empty(shape, np.uint8) if small else np.memmap(scratch, np.uint8, mode="w+", shape=shape)
        )
        for start in range(0, len(wanted), CHUNK):
            array[start : start + CHUNK] = images[wanted[start : start + CHUNK]]
        yield array


def read_failures(path: Place) -> Failures:
    """The failures of one file; the pixels are a read-only memory map. Raises DataError for a damaged file."""
    return read_with_facts(path)[0]


def read_with_facts(path: Place) -> tuple[Failures, dict[str, Any]]:
    """The failures of one file, and the metadata that was written with them."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(local(path))))
        texts = {k.decode(): v.decode() for k, v in (reader.schema.metadata or {}).items()}
        shape = tuple(int(x) for x in texts["image_shape"].split(","))
        facts: dict[str, Any] = dict(parse_json(texts["facts"]))
        if reader.num_record_batches != 1:
            raise DataError(
                f"{path} has {reader.num_record_batches} record batches; it must have one. Mine it again with "
                "--restart."
            )
        batch = reader.get_batch(0)
        _check_columns(batch, shape)
        return _failures(batch, texts["corruption"], shape, facts), facts
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{path} cannot be read as a file of an experience store ({' '.join(str(error).split())}). Mine it again "
            "with --restart."
        ) from error


def _check_columns(batch: pa.RecordBatch, shape: tuple[int, ...]) -> None:
    """Raise ValueError or ArrowInvalid unless the columns have their types and the file has all their bytes."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"its images are of the shape {list(shape)[:3]}, not [H, W, C]")
    batch.validate()  # of buffers alone: no pixel is read
    expected = failure_schema(shape, stored="pixels" in batch.schema.names)
    kinds = [(field.name, field.type) for field in expected]
    if [(field.name, field.type) for field in batch.schema] != kinds:
        raise ValueError(f"its columns are not {', '.join(f'{name} ({kind})' for name, kind in kinds)}")
    if any(column.null_count for column in batch.columns):
        raise ValueError("it lacks values")


def _failures(
    batch: pa.RecordBatch, corruption: str, shape: tuple[int, ...], facts: Mapping[str, Any]
) -> Failures:
    ids, severities = _column(batch, "image_id"), _column(batch, "severity")
    images: PixelRows
    if "pixels" in batch.schema.names:
        pixels, size = batch.column("pixels"), int(np.prod(shape))
        mapped = np.frombuffer(pixels.buffers()[1], dtype=np.uint8)
        images = mapped[pixels.offset * size :][: len(pixels) * size].reshape(-1, *shape)
    else:
        images = RecomputedPixels(
            corruption=corruption,
            image_ids_N=ids,
            severities_N=severities,
            digests_N=batch.column("pixels_digest").to_numpy(),
            image_shape=(shape[0], shape[1], shape[2]),
            seed=int(facts["seed"]),
        )
    return Failures(
        corruption=corruption,
        image_ids_N=ids,
        severities_N=severities,
        labels_N=_column(batch, "label"),
        predicted_N=_column(batch, "predicted"),
        images_NHWC=images,
    )


def _column(batch: pa.RecordBatch, name: str) -> Ints:
    column: Ints = batch.column(name).to_numpy(zero_copy_only=False).astype(np.int64)
    return column

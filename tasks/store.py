"""Failures in, Arrow files out, and back as memory maps: the experience store.

An environment is a folder:
    collect.arrow    D_collect: index columns and pixels, one row a failure
    fail.arrow       D_fail, in a file of its own: who may not read it is not given its path
    manifest.json    last, with counts, checksums and versions
While it is mined, `parts/` holds one Arrow file per shard; a part exists whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from tasks.errors import DataError
from tasks.manifest import Manifest, write_manifest
from tasks.mining import COLLECT, FAIL, UNUSED, Mined, concatenate
from tasks.records import Failures, Ints, failure_schema

Side = Literal["collect", "fail"]


def write_failures(path: Path, failures: Failures, *, metadata: Mapping[str, Any] | None = None) -> None:
    """One Arrow file, uncompressed so that it can be memory-mapped; it appears complete or not at all."""
    images = np.ascontiguousarray(failures.images_NHWC_u8)
    schema = failure_schema(images.shape[1:])
    size = int(np.prod(images.shape[1:]))
    pixels = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(size), len(failures), [None, pa.py_buffer(images.reshape(-1))]
    )
    facts = {"corruption": failures.corruption, "facts": json.dumps(dict(metadata or {}))}
    schema = schema.with_metadata(
        {**(schema.metadata or {}), **{k.encode(): v.encode() for k, v in facts.items()}}
    )
    batch = pa.record_batch(
        [
            pa.array(failures.image_ids_N, pa.int64()),
            pa.array(failures.severities_N, pa.int8()),
            pa.array(failures.labels_N, pa.int32()),
            pa.array(failures.predicted_N, pa.int32()),
            pixels,
        ],
        schema=schema,
    )
    part = path.with_name(path.name + ".tmp")
    part.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)
    part.replace(path)


def read_failures(path: Path) -> Failures:
    """The failures of one file; the pixels are a read-only memory map. Raises DataError for a damaged file."""
    return _read(path)[0]


def _read(path: Path) -> tuple[Failures, dict[str, Any]]:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        metadata = {k.decode(): v.decode() for k, v in (reader.schema.metadata or {}).items()}
        shape = tuple(int(x) for x in metadata["image_shape"].split(","))
        if reader.num_record_batches != 1:
            raise DataError(f"{path} has {reader.num_record_batches} record batches; a store's file has one.")
        batch = reader.get_batch(0)
        pixels = batch.column("pixels")
        images = np.frombuffer(pixels.buffers()[1], dtype=np.uint8)
        images = images[pixels.offset * int(np.prod(shape)) :][: len(pixels) * int(np.prod(shape))]
        failures = Failures(
            corruption=metadata["corruption"],
            image_ids_N=_column(batch, "image_id"),
            severities_N=_column(batch, "severity"),
            labels_N=_column(batch, "label"),
            predicted_N=_column(batch, "predicted"),
            images_NHWC_u8=images.reshape(-1, *shape),
        )
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
        raise DataError(
            f"{path} is missing, truncated, or no file of an experience store ({' '.join(str(error).split())}). "
            "Mine it again with --restart."
        ) from error
    return failures, json.loads(metadata["facts"])


def _column(batch: pa.RecordBatch, name: str) -> Ints:
    column: Ints = batch.column(name).to_numpy(zero_copy_only=False).astype(np.int64)
    return column


def write_part(path: Path, mined: Mined) -> None:
    """One shard's failures with its counts."""
    facts = {"examined": mined.examined, "correct": mined.correct, "seconds": mined.seconds}
    write_failures(path, mined.failures, metadata=facts)


def read_part(path: Path) -> Mined:
    """What `write_part` wrote."""
    failures, facts = _read(path)
    by_severity = {key: {int(s): n for s, n in facts[key].items()} for key in ("examined", "correct")}
    return Mined(failures=failures, seconds=facts.get("seconds", {}), **by_severity)


def finish_environment(
    folder: Path,
    parts: Sequence[Path],
    sides_of: Callable[[Failures], np.ndarray],
    *,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    num_classes: int,
) -> Manifest:
    """Joins the parts in shard order, splits them, writes both sides and the manifest, drops the parts."""
    mined = [read_part(path) for path in parts]
    failures = concatenate([m.failures for m in mined])
    outside = np.flatnonzero(failures.labels_N >= num_classes)
    if len(outside):
        raise DataError(f"{folder}: {len(outside)} failures have labels outside the {num_classes} classes.")
    sides_N = sides_of(failures)
    for side, name in ((COLLECT, "collect"), (FAIL, "fail")):
        write_failures(folder / f"{name}.arrow", failures.take(np.flatnonzero(sides_N == side)))
    collected = failures.labels_N[sides_N == COLLECT]
    counts = np.bincount(collected, minlength=num_classes)
    manifest = write_manifest(
        folder,
        stage=stage,
        config=config,
        inputs=inputs,
        files=["collect.arrow", "fail.arrow"],
        rows={
            "collect": int((sides_N == COLLECT).sum()),
            "fail": int((sides_N == FAIL).sum()),
            "unused": int((sides_N == UNUSED).sum()),
        },
        facts={
            "examined": _sum([m.examined for m in mined]),
            "correct": _sum([m.correct for m in mined]),
            # Of all workers together: what corrupting and what classifying cost.
            "seconds": {k: round(sum(m.seconds[k] for m in mined), 3) for k in mined[0].seconds},
            "collected_per_class": counts.tolist(),
            "classes_without_failures": np.flatnonzero(counts == 0).tolist(),
        },
    )
    shutil.rmtree(folder / "parts", ignore_errors=True)
    return manifest


def _sum(counts: Sequence[Mapping[int, int]]) -> dict[str, int]:
    return {str(severity): sum(c[severity] for c in counts) for severity in counts[0]}


def open_side(folder: Path, side: Side, manifest: Manifest) -> Failures:
    """One side of a finished environment as a memory map. Raises DataError when it is not as promised."""
    name = f"{side}.arrow"
    failures = read_failures(folder / name)
    if len(failures) != manifest.rows[side]:
        raise DataError(
            f"{folder / name} has {len(failures)} rows, its manifest promises {manifest.rows[side]}. "
            "Mine it again with --restart."
        )
    return failures

"""Read the header of an .arrow, .parquet or .safetensors file. Rows are not read.

Each function returns None if the file is truncated, unreadable, or not of the kind that its name says.
"""

from __future__ import annotations

from math import prod
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.storage.paths import Place, local

# Exceptions that the libraries raise for damaged bytes.
_DAMAGED = (OSError, pa.ArrowException, KeyError, ValueError)
Header = dict[str, Any]


def failures_header(path: Place) -> Header | None:
    """Return the corruption, the image shape, the number of rows, and whether pixels are stored."""
    try:
        with pa.memory_map(str(local(path))) as source:
            reader = pa.ipc.open_file(source)
            notes = _notes(reader.schema.metadata)
            return {
                "rows": sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches)),
                "corruption": notes["corruption"],
                "image_shape": " x ".join(notes["image_shape"].split(",")),
                "pixels": "stored" if "pixels" in reader.schema.names else "recomputed",
            }
    except _DAMAGED:
        return None


def parquet_header(path: Place) -> Header | None:
    """Return the columns, the number of rows, and the length of a feature vector."""
    try:
        with pq.ParquetFile(local(path)) as table:
            schema, notes = table.schema_arrow, _notes(table.schema_arrow.metadata)
            feature = schema.field("features").type if "features" in schema.names else pa.null()
            return {
                "rows": table.metadata.num_rows,
                "columns": tuple(schema.names),
                "dim": feature.list_size if pa.types.is_fixed_size_list(feature) else None,
                "notes": {k: v for k, v in notes.items() if k in ("extractor", "source")},
            }
    except _DAMAGED:
        return None


def safetensors_header(path: Place) -> Header | None:
    """Return the number of tensors, the number of values, and their types."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(local(path), framework="np") as tensors:
            slices = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118  not a mapping
            return {
                "tensors": len(slices),
                "values": sum(prod(s.get_shape()) for s in slices),
                "types": tuple(sorted({str(s.get_dtype()) for s in slices})),
                "notes": dict(tensors.metadata() or {}),
            }
    except (SafetensorError, *_DAMAGED):
        return None


def _notes(metadata: dict[bytes, bytes] | None) -> dict[str, str]:
    return {k.decode(): v.decode(errors="replace") for k, v in (metadata or {}).items()}

"""Read what a run's folder holds without what is measured, so that equal runs can be compared."""

from __future__ import annotations

import json
from typing import Any

import pyarrow.csv
import pyarrow.parquet

from tasks.records import MEASURED
from tasks.storage.manifest import CHECKSUM
from tasks.storage.paths import Place, find, inside, local

OTHERS = (CHECKSUM, "storage_path")  # the checksum includes the seconds
EXACT = (
    ".safetensors",
    ".arrow",
    ".npy",
    ".png",
)  # compared by their bytes; the files of other kinds by values
SHOW_SECONDS = ("table.md", "index.html")


def without_measured(value: Any) -> Any:
    """Return JSON content without measured values, the storage path, and digests of files that hold either."""
    if isinstance(value, list):
        return [without_measured(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: without_measured(item) for key, item in value.items() if key not in (*MEASURED, *OTHERS)}
    if isinstance(files := kept.get("files"), dict):
        kept["files"] = {name: promise if name.endswith(EXACT) else None for name, promise in files.items()}
    return kept


def comparable(root: Place) -> dict[str, Any]:
    """Return the content of every file by name, except checkpoints, event files and pages that show seconds."""
    found: dict[str, Any] = {}
    for path in find(root, "*.*", deep=True):
        name = inside(path, root)
        if "checkpoint" in name or path.name in SHOW_SECONDS or not path.is_file():
            continue
        if path.suffix in EXACT:
            found[name] = path.read_bytes()
        elif path.suffix in (".parquet", ".csv"):
            read = pyarrow.parquet.read_table if path.suffix == ".parquet" else pyarrow.csv.read_csv
            found[name] = without_measured(read(local(path)).to_pydict())
        elif path.suffix == ".json":
            found[name] = without_measured(json.loads(path.read_text(encoding="utf-8")))
    return found

"""Results on disk in, what people look at out. Nothing here learns or chooses anything.

table.py     result.json -> a table, its legend, a verdict in sentences; all rows as CSV and Parquet
figures.py   numbers and images -> PNG bytes
paper.py     the paper's own numbers, to stand beside ours
html.py      all of it -> report/index.html, one file that opens offline
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from metarepair.runs.layout import Run
from tasks.errors import DataError, StageError, unreadable

__all__ = ["SCHEMA_VERSION", "load_results"]

SCHEMA_VERSION = 1


def load_results(run: Run, targets: Iterable[str]) -> list[dict[str, Any]]:
    """result.json of each target. Raises StageError with the remedy where a target is not repaired yet."""
    results = []
    for target in targets:
        path = run.repaired(target) / "result.json"
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            version, methods = result["schema_version"], result["methods"]
        except FileNotFoundError as error:
            raise StageError(
                f"{path} is missing: {target} is not repaired yet. "
                "Repair it first: metarepair repair --config FILE."
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{unreadable(path, error)}. Make it again: metarepair repair --config FILE --restart."
            ) from error
        if version != SCHEMA_VERSION or not methods:
            raise StageError(
                f"{path} has schema_version {version} and {len(methods)} rows; this version reads "
                f"schema_version {SCHEMA_VERSION} with at least one row. "
                "Make it again: metarepair repair --config FILE --restart."
            )
        results.append(result)
    return results

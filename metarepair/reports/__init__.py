"""Turn the results on disk into tables, figures and an HTML report. Nothing here learns or selects anything.

table.py     a table, its legend and a verdict from result.json; all rows as CSV and Parquet
figures.py   figures as PNG bytes
paper.py     the paper's numbers, for comparison
html.py      the whole report in report/index.html, one file that opens offline
card.py      a model card beside each repaired model; card_text.py its README.md, card_page.py the same in HTML
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from metarepair.runs.layout import Run
from tasks.errors import DataError, StageError, unreadable
from tasks.storage.names import plain_name
from tasks.storage.paths import read_json

__all__ = ["SCHEMA_VERSION", "load_results"]

SCHEMA_VERSION = 1


def load_results(run: Run, targets: Iterable[str]) -> list[dict[str, Any]]:
    """Load result.json of each target. Raises StageError with the remedy if a target is not repaired yet."""
    results = []
    for target in targets:
        path = run.repaired(target) / "result.json"
        try:
            result = read_json(path)
            version, methods = result["schema_version"], result["methods"]
            for weights in (row["weights"] for row in methods if "weights" in row):
                plain_name(weights)
        except FileNotFoundError as error:
            raise StageError(
                f"{path} is missing: {target} is not repaired yet. "
                "Repair it first: metarepair repair --config FILE."
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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

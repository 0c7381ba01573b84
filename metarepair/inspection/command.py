"""`metarepair inspect` and `metarepair status`: print a record as text or JSON, and fail where it tells of damage."""

from __future__ import annotations

import json
from pathlib import Path

from metarepair.inspection.damage import complaint
from metarepair.inspection.inspect import inspect
from metarepair.inspection.inspect_text import describe
from metarepair.inspection.status import status_of
from metarepair.inspection.status_text import describe_status
from tasks.errors import DataError, UserError


def show_inspection(path: str, *, sheet: Path | None, as_json: bool) -> None:
    """Print what is at `path` and draw the sheet; then raise DataError for damage, or for what cannot be drawn."""
    if sheet is not None:
        from metarepair.reports.contact_sheet import check_ending

        check_ending(sheet, "--sheet")
    found = inspect(path)
    print(json.dumps(found.plain(), indent=1) if as_json else describe(found))
    wrong = [complaint(found.damaged)] if found.damaged else []
    if sheet is not None:
        from metarepair.inspection.sheet import write_sheet

        try:
            write_sheet(found, sheet)
        except UserError as error:
            wrong.append(str(error))
        else:
            if not as_json:
                print(f"\nCollected failures: {sheet}")
    if wrong:
        raise DataError(" ".join(wrong))


def show_status(path: str, *, as_json: bool) -> None:
    """Print how far the run at `path` is; then raise DataError for damage."""
    found = status_of(path)
    print(json.dumps(found.plain(), indent=1) if as_json else describe_status(found))
    if found.damaged:
        raise DataError(complaint(found.damaged))

"""Run `metarepair inspect` and `metarepair status`: print text or JSON, and fail if there is damage."""

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
    """Print what is at `path` and draw the sheet; then raise DataError if there is damage or no sheet can be drawn."""
    if sheet is not None:
        from metarepair.reports.contact_sheet import check_ending

        check_ending(sheet, "--sheet")
    inspection = inspect(path)
    print(json.dumps(inspection.plain(), indent=1) if as_json else describe(inspection))
    problems = [complaint(inspection.damaged)] if inspection.damaged else []
    if sheet is not None:
        from metarepair.inspection.sheet import write_sheet

        try:
            write_sheet(inspection, sheet)
        except UserError as error:
            problems.append(str(error))
        else:
            if not as_json:
                print(f"\nCollected failures: {sheet}")
    if problems:
        raise DataError(" ".join(problems))


def show_status(path: str, *, as_json: bool) -> None:
    """Print the progress of the run at `path`; then raise DataError if there is damage."""
    status = status_of(path)
    print(json.dumps(status.plain(), indent=1) if as_json else describe_status(status))
    if status.damaged:
        raise DataError(complaint(status.damaged))

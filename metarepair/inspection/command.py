"""`metarepair inspect`: a path in; text or JSON on the terminal, and a picture, out."""

from __future__ import annotations

import json
from pathlib import Path

from metarepair.inspection.checks import complaint
from metarepair.inspection.inspect import inspect
from tasks.errors import DataError, UserError


def show(path: str, *, sheet: Path | None, as_json: bool) -> None:
    """Prints everything that is there to be told; then raises DataError for what is damaged or not to be drawn."""
    if sheet is not None:
        from metarepair.reports.contact_sheet import check_ending

        check_ending(sheet, "--sheet")
    found = inspect(path)
    if as_json:
        print(json.dumps(found.plain(), indent=1))
    else:
        from metarepair.inspection.text import describe

        print(describe(found))
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

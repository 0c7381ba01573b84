"""`metarepair status`: a path in, text or JSON on the terminal out."""

from __future__ import annotations

import json

from metarepair.inspection.checks import complaint
from metarepair.status.look import status_of
from tasks.errors import DataError


def show_status(path: str, *, as_json: bool) -> None:
    """Prints how far the run is; then raises DataError for what is damaged."""
    found = status_of(path)
    if as_json:
        print(json.dumps(found.plain(), indent=1))
    else:
        from metarepair.status.text import describe

        print(describe(found))
    if found.damaged:
        raise DataError(complaint(found.damaged))

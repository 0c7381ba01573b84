"""Open the page of a report in the browser."""

from __future__ import annotations

import webbrowser
from pathlib import Path

from tasks.errors import ConfigError
from tasks.storage.paths import Place


def require_local(folder: Place) -> Path:
    """Return the folder of a report. Raises ConfigError if it is on an object store, which no browser opens."""
    if isinstance(folder, Path):
        return folder
    raise ConfigError(
        f"--open opens a page on this machine, and the report is written to {folder}. Leave --open out, or write the "
        "report into a local folder: --out FOLDER"
    )


def open_page(page: Path) -> None:
    """Open a page; if there is no browser, print where the page is."""
    if not webbrowser.open(page.as_uri()):
        print(f"No browser could be opened. Open this page yourself: {page}")

"""What the trackers of a run, a training or a trial were given: `trackers.json` in its folder.

By tracker: `id`, of its run in the tracker; `step`, the last one; `figures`, a digest of its final figures.
"""

from __future__ import annotations

import json
from typing import Any

from metarepair.trackers.words import words_of
from tasks.errors import DataError, StorageError
from tasks.storage.paths import Place, read_json, write_text

RECORD = "trackers.json"
FAILURES = (OSError, StorageError, DataError)


class RecordError(Exception):
    """The record cannot be read or written; the tracker is not at fault."""


class Record:
    """The record in a folder. A missing or damaged one counts as empty.

    Raises RecordError if there is one that cannot be read, since a tracker would then show everything twice.
    """

    def __init__(self, folder: Place) -> None:
        self._path = folder / RECORD
        try:
            found = read_json(self._path)
        except (FileNotFoundError, ValueError):
            found = None
        except FAILURES as error:
            raise RecordError(f"{self._path} cannot be read ({words_of(error)})") from None
        entries = found.items() if isinstance(found, dict) else ()
        self._given: dict[str, dict[str, Any]] = {k: given for k, given in entries if isinstance(given, dict)}

    def get(self, name: str, key: str) -> Any:
        """A value of a tracker; None if there is none."""
        return self._given.get(name, {}).get(key)

    def step(self, name: str) -> int:
        """The last step that a tracker was given; -1 for none."""
        step = self.get(name, "step")
        return step if isinstance(step, int) else -1

    def keep(self, name: str, **values: Any) -> None:
        """Set values of a tracker. Raises RecordError if they cannot be written."""
        self._write({**self._given, name: self._given.get(name, {}) | values})

    def begin(self, name: str, run: str | None) -> None:
        """Forget what a tracker was given: it shows a new run. Raises RecordError as `keep` does."""
        self._write({**self._given, name: {"id": run}})

    def _write(self, given: dict[str, dict[str, Any]]) -> None:
        try:
            write_text(self._path, json.dumps(given))
        except FAILURES as error:
            raise RecordError(f"{self._path} cannot be written ({words_of(error)})") from None
        self._given = given

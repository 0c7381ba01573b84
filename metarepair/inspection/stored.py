"""Read what a stage's folder says of itself without opening its results: the manifest, or the mark of its beginning.

What another version or a damaged disk may have written is never trusted to have its type: `as_object`,
`section`, `rows_of`, `whole` and `real` give nothing for a value of another type.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from metarepair.inspection.walk import StageFolder
from metarepair.runs.checkpoint import read_state
from tasks.errors import DataError
from tasks.storage.manifest import Manifest, read_manifest
from tasks.storage.paths import Place
from tasks.storage.sealed_parts import SUFFIX

JUDGED = ("judged.json", "samples.parquet")  # a comparison's judgement of a repair, each with a seal


@dataclass(frozen=True, kw_only=True)
class StoredStage(StageFolder):
    """A stage's folder and its manifest; `begun_with` is what the mark of an unfinished one says, else empty."""

    manifest: Manifest | None
    manifest_state: Literal["ok", "missing", "damaged"]
    begun_with: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The settings that it was made with, or begun with; empty where they are not known."""
        return self.manifest.config if self.manifest is not None else section(self.begun_with, "config")

    @property
    def facts(self) -> dict[str, Any]:
        """The facts of its manifest; empty where it has none."""
        return self.manifest.facts if self.manifest is not None else {}

    @property
    def promised(self) -> Mapping[str, tuple[int, str]]:
        """Bytes and digest of each file that its manifest names."""
        return self.manifest.files if self.manifest is not None else {}


def read_stage(folder: StageFolder) -> StoredStage:
    """The stage with its manifest, or else with its mark."""
    manifest, state = read_promise(folder.folder)
    mark = folder.mark if manifest is None else None
    found = as_object(read_json(folder.folder / mark)) if mark is not None else {}
    begun_with = found if isinstance(found.get("config"), dict) else {}
    return StoredStage(**vars(folder), manifest=manifest, manifest_state=state, begun_with=begun_with)


def read_promise(folder: Place) -> tuple[Manifest | None, Literal["ok", "missing", "damaged"]]:
    """The manifest, and whether it can be used: one whose parts are of another type than they must be cannot."""
    try:
        manifest = read_manifest(folder)
    except (DataError, RecursionError):
        return None, "damaged"
    if manifest is None:
        return None, "missing"
    parts = (manifest.config, manifest.inputs, manifest.rows, manifest.facts, manifest.versions)
    whole = isinstance(manifest.stage, str) and all(isinstance(part, dict) for part in parts)
    whole = whole and all(isinstance(digest, str) for _, digest in manifest.files.values())
    return (manifest, "ok") if whole else (None, "damaged")


def sealed_parts(stage: StageFolder) -> list[str]:
    """The parts of an unfinished stage that will not be made again."""
    names = stage.matching(stage.stage.parts) if stage.stage.parts is not None else []
    return [name for name in names if f"{name}{SUFFIX}" in stage.files]


def read_json(path: Place) -> Any:
    """The content of a small JSON file; None where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def checkpoint_state(folder: Place) -> dict[str, Any] | None:
    """The state of a complete checkpoint; None where anything of it is missing or damaged."""
    try:
        return read_state(folder)
    except (TypeError, AttributeError, RecursionError):  # JSON of another shape
        return None


def count_lines(path: Place) -> int | None:
    """Lines of a small log, None where it cannot be read."""
    try:
        return len(path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return None


def as_object(content: Any) -> dict[str, Any]:
    """The content when it is a JSON object; empty otherwise."""
    return content if isinstance(content, dict) else {}


def section(content: Any, key: str) -> dict[str, Any]:
    """The object that `content` has at `key`; empty where it has none."""
    return as_object(as_object(content).get(key))


def rows_of(content: Any) -> list[dict[str, Any]]:
    """The objects in a list; empty for what is no list."""
    return [row for row in content if isinstance(row, dict)] if isinstance(content, list) else []


def whole(value: Any) -> int | None:
    """The value when it is a count."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def real(value: Any) -> float | None:
    """The value when it is a finite number."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if ok else None


def reals(row: Mapping[str, Any], keys: Iterable[str]) -> dict[str, float]:
    """Those of the values that are finite numbers."""
    return {key: value for key in keys if (value := real(row.get(key))) is not None}


def newest(rows: Iterable[Mapping[str, Any]], key: str) -> float | None:
    """The last finite number that the rows have at `key`."""
    found = [value for row in rows if (value := real(row.get(key))) is not None]
    return found[-1] if found else None


def episodes_of(config: Any) -> int | None:
    """How many episodes the settings of a training ask for."""
    return whole(section(config, "train").get("episodes"))

"""Read a stage's manifest, or its start mark if it is unfinished, without opening its results.

Another version or a damaged disk may have written values of any type, so types are always checked: `as_object`,
`section`, `rows_of`, `whole` and `real` return an empty value or None for a value of another type.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from metarepair.inspection.walk import StageFolder
from metarepair.runs.checkpoint import read_state
from tasks.errors import DataError
from tasks.storage.manifest import Manifest, read_manifest
from tasks.storage.paths import Place, read_json
from tasks.storage.sealed_parts import SUFFIX

JUDGED = ("judged.json", "samples.parquet")  # a comparison's judgement of one repair; each file has a seal


@dataclass(frozen=True, kw_only=True)
class StoredStage(StageFolder):
    """A stage's folder and its manifest. `begun_with`: content of an unfinished stage's start mark, else empty."""

    manifest: Manifest | None
    manifest_state: Literal["ok", "missing", "damaged"]
    begun_with: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The settings that the stage was made or started with; empty if unknown."""
        return self.manifest.config if self.manifest is not None else section(self.begun_with, "config")

    @property
    def facts(self) -> dict[str, Any]:
        """The facts in the manifest; empty if there is no manifest."""
        return self.manifest.facts if self.manifest is not None else {}

    @property
    def promised(self) -> Mapping[str, tuple[int, str]]:
        """Size in bytes and digest of each file in the manifest."""
        return self.manifest.files if self.manifest is not None else {}


def read_stage(folder: StageFolder) -> StoredStage:
    """Read a stage's manifest, or else its start mark."""
    manifest, state = read_promise(folder.folder)
    mark = folder.mark if manifest is None else None
    found = as_object(json_or_none(folder.folder / mark)) if mark is not None else {}
    begun_with = found if isinstance(found.get("config"), dict) else {}
    return StoredStage(**vars(folder), manifest=manifest, manifest_state=state, begun_with=begun_with)


def read_promise(folder: Place) -> tuple[Manifest | None, Literal["ok", "missing", "damaged"]]:
    """Read the manifest, and return it with its state. A manifest with a part of the wrong type is damaged."""
    try:
        manifest = read_manifest(folder)
    except DataError:
        return None, "damaged"
    if manifest is None:
        return None, "missing"
    parts = (manifest.config, manifest.inputs, manifest.rows, manifest.facts, manifest.versions)
    whole = isinstance(manifest.stage, str) and all(isinstance(part, dict) for part in parts)
    whole = whole and all(isinstance(digest, str) for _, digest in manifest.files.values())
    return (manifest, "ok") if whole else (None, "damaged")


def sealed_parts(stage: StageFolder) -> list[str]:
    """Return the parts of an unfinished stage that will not be made again."""
    names = stage.matching(stage.stage.parts) if stage.stage.parts is not None else []
    return [name for name in names if f"{name}{SUFFIX}" in stage.files]


def json_or_none(path: Place) -> Any:
    """Return the content of a small JSON file; None if it cannot be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def checkpoint_state(folder: Place) -> dict[str, Any] | None:
    """Return the state of a complete checkpoint; None if any of its files is missing or damaged."""
    try:
        return read_state(folder)
    except (TypeError, AttributeError):  # JSON of another shape
        return None


def count_lines(path: Place) -> int | None:
    """Return the number of lines of a small log; None if it cannot be read."""
    try:
        return len(path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return None


def as_object(content: Any) -> dict[str, Any]:
    """Return the content if it is a JSON object, else an empty one."""
    return content if isinstance(content, dict) else {}


def section(content: Any, key: str) -> dict[str, Any]:
    """Return the object at `key` in `content`, or an empty one."""
    return as_object(as_object(content).get(key))


def rows_of(content: Any) -> list[dict[str, Any]]:
    """Return the objects in a list; empty if `content` is not a list."""
    return [row for row in content if isinstance(row, dict)] if isinstance(content, list) else []


def whole(value: Any) -> int | None:
    """Return the value if it is a non-negative integer, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def real(value: Any) -> float | None:
    """Return the value if it is a finite number, else None."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if ok else None


def reals(row: Mapping[str, Any], keys: Iterable[str]) -> dict[str, float]:
    """Return the values at `keys` that are finite numbers."""
    return {key: value for key in keys if (value := real(row.get(key))) is not None}


def newest(rows: Iterable[Mapping[str, Any]], key: str) -> float | None:
    """Return the last finite number at `key` in the rows."""
    found = [value for row in rows if (value := real(row.get(key))) is not None]
    return found[-1] if found else None


def episodes_of(config: Any) -> int | None:
    """Return the number of episodes in a training's settings; None if its processor time decides."""
    if isinstance(config, Mapping) and "core_seconds" in config:
        return None
    return whole(section(config, "train").get("episodes"))

"""A stage's place in, its counts, settings, versions and the state of each of its files out."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from metarepair.inspection.checks import (
    Checksums,
    begun_config,
    files_there,
    parts_of,
    promised_files,
    read_promise,
    sealed_files,
    sealed_of,
)
from metarepair.inspection.details import details_of
from metarepair.inspection.facts import BAD, StageFacts, State
from metarepair.inspection.places import StagePlace
from tasks.storage.manifest import MANIFEST, content_hash
from tasks.storage.paths import Place


def stage_facts(place: StagePlace, checksums: Checksums) -> StageFacts:
    """Everything that is told of one stage."""
    manifest, state = read_promise(place.folder)
    parts: dict[str, dict[str, Any]] = {}
    states: dict[str, State] = {
        name: checksums.sealed_state(place.folder / name) for name in sealed_of(place, manifest)
    }
    if manifest is None:
        for name in parts_of(place):
            states[name], parts[name] = checksums.own_state(place.folder / name)
        files, config = files_there(place, states), begun_config(place)
        parts = {name: facts for name, facts in parts.items() if states[name] == "ok"}
    else:
        files = promised_files(place, manifest, checksums) + sealed_files(place, states)
        config = manifest.config
        if any(f.state in BAD for f in files) and not (place.folder / MANIFEST).exists():
            manifest, state, files = None, "missing", []  # it is being deleted, by --restart
    return StageFacts(
        path=place.path,
        kind=place.kind,
        role=place.role,
        name=place.name,
        finished=state == "ok",
        manifest=state,
        written=_written(place.folder / MANIFEST),
        size_bytes=sum(place.files.values()),
        settings=content_hash(config) if config else None,
        result=manifest.digest if manifest is not None else None,
        config=config,
        inputs=manifest.inputs if manifest is not None else {},
        rows=manifest.rows if manifest is not None else {},
        versions=manifest.versions if manifest is not None else {},
        files=tuple(files),
        details=details_of(place, manifest, {f.name: f.state for f in files}, config, list(parts.values())),
    )


def _written(path: Place) -> str | None:
    """When, by the file system; an object store's time is that of the upload, and is not asked for."""
    if not isinstance(path, Path):
        return None
    try:
        return datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat(timespec="seconds")
    except OSError:
        return None

"""Describe one .arrow, .parquet or .safetensors file, and check its checksum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from metarepair.inspection.checksums import Checksums
from metarepair.inspection.details import class_names, count_severities, load_collect, per_class
from metarepair.inspection.facts import BAD, Damage, FileState, Inspection, LoneFile
from metarepair.inspection.headers import Header, failures_header, parquet_header, safetensors_header
from metarepair.inspection.paths import PARTS
from metarepair.inspection.stored import checkpoint_state, read_promise
from metarepair.runs.checkpoint import STATE
from tasks.errors import DataError
from tasks.storage.manifest import MANIFEST, Manifest
from tasks.storage.paths import Place, inside, size_of
from tasks.storage.sealed_parts import seal_of

Format = Literal["failures", "parquet", "safetensors"]
FORMATS: dict[str, Format] = {".arrow": "failures", ".parquet": "parquet", ".safetensors": "safetensors"}
HEADERS: dict[Format, Callable[[Place], Header | None]] = {
    "failures": failures_header,
    "parquet": parquet_header,
    "safetensors": safetensors_header,
}
DEPTH = 3  # folders between a file and its stage's manifest, at most: repaired/TARGET/METHOD/SEED/…


def inspect_file(path: Place) -> Inspection:
    """Inspect one file of a run. Raises DataError for a file of another kind."""
    form = FORMATS.get(path.suffix)
    if form is None:
        raise DataError(f"{path} is not a file that can be inspected. {PARTS}.")
    size = size_of(path) or 0
    owner, names = _owner(path), tuple[str, ...]()
    if owner is None:
        promised_by, promise, state = None, None, _own_state(path, form, size)
    else:
        folder, name, manifest = owner
        promised_by, promise = folder / MANIFEST, manifest.files[name]
        names = class_names(manifest.config, manifest.facts)
        state = Checksums(size).state(path, promise)
    header = None if state == "differs" else HEADERS[form](path)
    if header is None and state != "differs":
        state = "unreadable"
    collect = load_collect(path.parent) if path.name == "collect.arrow" and state not in BAD else None
    file = LoneFile(
        name=path.name,
        format=form,
        size_bytes=size,
        promised_bytes=None if promise is None else promise[0],
        state=state,
        promised_by=None if promised_by is None else str(promised_by),
        header=header or {},
        collected_per_severity={} if collect is None else count_severities(collect),
        collected_per_class={} if collect is None else per_class(collect, None, names),
    )
    damaged = [Damage(path=path.name, state=state, remedy=_remedy(promised_by))] if state in BAD else []
    return Inspection(
        path=str(path), kind="file", size_bytes=size, damaged=tuple(damaged), stages=(), file=file
    )


def _owner(path: Place) -> tuple[Place, str, Manifest] | None:
    """Return the folder of the stage whose manifest lists the file, the file's name in it, and the manifest."""
    for folder in _parents(path):
        manifest, _ = read_promise(folder)
        name = inside(path, folder)
        if manifest is not None and name in manifest.files:
            return folder, name, manifest
    return None


def _parents(path: Place) -> Iterator[Place]:
    for _ in range(DEPTH):
        path = path.parent
        yield path


def _own_state(path: Place, form: Format, size: int) -> FileState:
    """Return the state of a file that is in no manifest, given its seal or its checkpoint's state."""
    if form == "failures":
        return Checksums(size).part_state(path)[0]
    if seal_of(path).exists():
        return Checksums(size).sealed_state(path)
    if form == "parquet" or not (path.parent / STATE).is_file():
        return "unchecked"
    return "ok" if checkpoint_state(path.parent) is not None else "differs"


def _remedy(promised_by: Place | None) -> str:
    gone = "it" if promised_by is None else f"it and {promised_by}"
    return f"Delete {gone}, and run the command that made it again."

"""A stage's manifest and files in, the state of each file out; a checksum is of bytes, nothing else of them is kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from metarepair.inspection.facts import BAD, JUDGED, Damage, FileFacts, StageFacts, State
from metarepair.inspection.places import StagePlace
from metarepair.runs.progress import Progress
from tasks.errors import DataError
from tasks.experiences.failure_file import read_with_facts
from tasks.storage.manifest import MANIFEST, Manifest, has_digest, read_manifest
from tasks.storage.paths import Place, size_of
from tasks.storage.sealed_parts import SUFFIX, is_untouched, seal_of
from tasks.storage.stages import BEGUN, Kind, stage_of_kind

SHOWN_FROM_BYTES = 1 << 28  # less is read in about a second, and needs no progress


class Checksums:
    """Digests of files, with progress over the bytes of all of them."""

    def __init__(self, total_bytes: int) -> None:
        shown = total_bytes >= SHOWN_FROM_BYTES
        self._progress = Progress("checksums", max(total_bytes >> 20, 1), "MiB") if shown else None
        self._read = 0

    def state(self, path: Place, promised: tuple[int, str]) -> State:
        """Of one file: its size first, which costs nothing."""
        try:
            size = size_of(path)
            if size != promised[0]:
                return "missing" if size is None else "differs"
            same = has_digest(path, promised[1])
        except (OSError, ValueError):
            return "unreadable"
        self._advance(size, path.name)
        return "ok" if same else "differs"

    def sealed_state(self, path: Place) -> State:
        """Of a file by its seal. Without one nothing promises what its bytes are, as of one that is being replaced."""
        mark = seal_of(path)
        same = mark.exists() and is_untouched(path)
        self._advance(size_of(path) or 0, path.name)
        if same:
            return "ok"
        return "differs" if mark.exists() and path.exists() else "unchecked"

    def own_state(self, path: Place) -> tuple[State, dict[str, Any]]:
        """Of a part of an environment, by its seal; and its counts."""
        found = self.sealed_state(path)
        try:
            return found, read_with_facts(path)[1] if found != "differs" else {}
        except DataError:
            return "differs", {}

    def _advance(self, size_bytes: int, name: str) -> None:
        self._read += size_bytes
        if self._progress is not None and self._read >> 20 > self._progress.done:
            self._progress.advance((self._read >> 20) - self._progress.done, name)


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


def bytes_to_read(places: Iterable[StagePlace]) -> int:
    """How much there is to read for the checksums of the stages."""
    total = 0
    for place in places:
        manifest, _ = read_promise(place.folder)
        promised = {} if manifest is None else {name: size for name, (size, _) in manifest.files.items()}
        total += sum(size for name, size in promised.items() if place.files.get(name) == size)
        total += sum(place.files[name] for name in parts_of(place)) if manifest is None else 0
        total += sum(place.files[name] for name in sealed_of(place, manifest))
    return total


def parts_of(place: StagePlace) -> list[str]:
    """The shards of an environment that is not finished."""
    return place.matching("parts/*.arrow") if place.kind == "environment" else []


def sealed_of(place: StagePlace, manifest: Manifest | None) -> list[str]:
    """Files that seals vouch for, and no manifest: pieces of an unfinished preparation, judgements of a comparison."""
    if place.kind == "compared":
        return [name for name in JUDGED if name in place.files]
    if place.kind != "prepared" or manifest is not None:
        return []
    return [name for name in place.files if f"{name}{SUFFIX}" in place.files]


def begun_config(place: StagePlace) -> dict[str, Any]:
    """The settings that an unfinished stage was begun with; empty when it left none."""
    config: dict[str, Any] = begun_mark(place).get("config", {})
    return config


def begun_name(place: StagePlace) -> str | None:
    """The file that an unfinished stage was marked with when it began, None where there is none."""
    return next(iter(place.matching(*(p for p in place.stage.traces if p.endswith(BEGUN)))), None)


def begun_mark(place: StagePlace) -> dict[str, Any]:
    """What that file says; empty when it is not there, or damaged."""
    name = begun_name(place)
    try:
        mark = json.loads((place.folder / name).read_text(encoding="utf-8")) if name is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return mark if isinstance(mark, dict) and isinstance(mark.get("config"), dict) else {}


def promised_files(place: StagePlace, manifest: Manifest, checksums: Checksums) -> list[FileFacts]:
    """Every file of a finished stage."""
    return [
        FileFacts(
            name=name,
            size_bytes=place.files.get(name),
            promised_bytes=promise[0],
            state=checksums.state(place.folder / name, promise),  # also where it came after the listing
        )
        for name, promise in sorted(manifest.files.items())
    ]


def files_there(place: StagePlace, states: dict[str, State]) -> list[FileFacts]:
    """Files of a stage without a manifest that can be read. Only parts, whose `states` are given, have a digest."""
    names = [name for name in place.matching(*place.stage.traces) if not name.endswith(BEGUN)]
    unsealed: dict[str, State] = dict.fromkeys(names, "unchecked")
    return sealed_files(place, unsealed | states)


def sealed_files(place: StagePlace, states: Mapping[str, State]) -> list[FileFacts]:
    """Files that no manifest promises, with the states that are given."""
    return [
        FileFacts(name=name, size_bytes=place.files[name], promised_bytes=None, state=state)
        for name, state in states.items()
    ]


def damage_of(facts: StageFacts) -> list[Damage]:
    """What is wrong with a stage, and what to do about it."""
    where = "" if facts.path == "." else f"{facts.path}/"
    found = []
    if facts.manifest == "damaged":
        path = f"{where}{MANIFEST}"
        found.append(Damage(path=path, state="damaged", remedy=remedy_for(facts.kind, path)))
    for file in facts.files:
        if file.state in BAD:
            gone = [
                f"{where}{file.name}",
                *([f"{where}{MANIFEST}"] if file.promised_bytes is not None else []),
            ]
            remedy = remedy_for(facts.kind, " and ".join(gone), sealed=file.promised_bytes is None)
            found.append(Damage(path=gone[0], state=file.state, remedy=remedy))
    return found


def remedy_for(kind: Kind, gone: str, *, sealed: bool = False) -> str:
    """A stage goes on from what is whole once what is not, and its manifest, are gone.

    Some see to that alone, and all do where seals stand for the files.
    """
    stage = stage_of_kind(kind)
    if sealed or stage.mends:
        return f"Run `metarepair {stage.verb} --config FILE` again, which makes anew what is damaged."
    return f"Delete {gone}, and run `metarepair {stage.verb} --config FILE` again."


def complaint(damaged: Sequence[Damage]) -> str:
    """All damage in one paragraph for a person, by what to do: at most ten files of each."""
    by_remedy: dict[str, list[str]] = {}
    for damage in damaged:
        by_remedy.setdefault(damage.remedy, []).append(f"{damage.path} {WORDS[damage.state]}")
    sentences = []
    for remedy, files in by_remedy.items():
        more = f" and {len(files) - 10} more, named above" if len(files) > 10 else ""
        sentences.append(f"{', '.join(files[:10])}{more}. {remedy}")
    return f"{len(damaged)} damaged: {' '.join(sentences)}"


WORDS = {
    "ok": "ok",
    "differs": "differs from its checksum",
    "missing": "is missing",
    "unreadable": "cannot be read",
    "damaged": "is damaged",
    "unchecked": "has no checksum",
}

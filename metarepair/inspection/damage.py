"""What is damaged in a stage, and what to do about it: by the states of its files, or by their sizes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metarepair.inspection.facts import BAD, Damage, FileState
from metarepair.inspection.stored import StoredStage
from tasks.storage.manifest import MANIFEST
from tasks.storage.paths import size_of
from tasks.storage.stages import Kind, stage_of_kind

WORDS = {
    "ok": "ok",
    "differs": "differs from its checksum",
    "missing": "is missing",
    "unreadable": "cannot be read",
    "damaged": "is damaged",
    "unchecked": "has no checksum",
}


def damage_of(stage: StoredStage, states: Mapping[str, FileState]) -> list[Damage]:
    """The damage of a stage whose files are in these states."""
    found = [_damage(stage, MANIFEST, "damaged")] if stage.manifest_state == "damaged" else []
    return found + [_damage(stage, name, state) for name, state in states.items() if state in BAD]


def damage_by_size(stage: StoredStage) -> list[Damage]:
    """The damage that shows without reading the files: by sizes, the manifest, the mark of an unfinished stage."""
    states: dict[str, FileState] = {}
    for name, (size, _) in stage.promised.items():
        there = stage.files[name].size_bytes if name in stage.files else None
        if there != size:
            there = size_of(stage.folder / name)  # it may have come after the listing
        if there != size:
            states[name] = "missing" if there is None else "differs"
    if is_being_deleted(stage, states):
        return []
    mark, needed = (
        stage.mark,
        stage.kind in ("meta", "deployed"),
    )  # sealed parts need none: it is written anew
    if stage.manifest_state == "missing" and needed and mark is not None and not stage.begun_with:
        return [_damage(stage, mark, "damaged")]
    return damage_of(stage, states)


def is_being_deleted(stage: StoredStage, states: Mapping[str, FileState]) -> bool:
    """Whether files are gone because --restart deletes the stage at this moment: its manifest goes, too."""
    bad = any(state in BAD for state in states.values())
    return bad and stage.manifest is not None and not (stage.folder / MANIFEST).exists()


def remedy_for(kind: Kind, gone: str, *, sealed: bool = False) -> str:
    """What to do about damage: a stage goes on from what is whole once the rest, and its manifest, are gone.

    Some stages delete it themselves, and all do where seals stand for the files.
    """
    stage = stage_of_kind(kind)
    if sealed or stage.mends:
        return f"Run `metarepair {stage.verb} --config FILE` again, which makes anew what is damaged."
    kept = ", which keeps the trials that are over" if kind == "search" else ""
    return f"Delete {gone}, and run `metarepair {stage.verb} --config FILE` again{kept}."


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


def _damage(stage: StoredStage, name: str, state: str) -> Damage:
    path, promised = stage.path_of(name), name in stage.promised
    gone = f"{path} and {stage.path_of(MANIFEST)}" if promised else path
    sealed = not promised and state != "damaged"
    return Damage(path=path, state=state, remedy=remedy_for(stage.kind, gone, sealed=sealed))

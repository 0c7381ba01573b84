"""Find a stage's damage, from the states of its files or from their sizes alone, and name its remedy."""

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
    """Return a stage's damage, given the states of its files."""
    found = [_damage(stage, MANIFEST, "damaged")] if stage.manifest_state == "damaged" else []
    return found + [_damage(stage, name, state) for name, state in states.items() if state in BAD]


def damage_by_size(stage: StoredStage) -> list[Damage]:
    """Return the damage visible without reading the files: in sizes, the manifest, or an unfinished stage's mark."""
    states: dict[str, FileState] = {}
    for name, (size, _) in stage.promised.items():
        there = stage.files[name].size_bytes if name in stage.files else None
        if there != size:
            there = size_of(stage.folder / name)  # it may have been written after the listing
        if there != size:
            states[name] = "missing" if there is None else "differs"
    if is_being_deleted(stage, states):
        return []
    mark, needed = (
        stage.mark,
        stage.kind in ("meta", "joint", "merged", "deployed"),
    )  # stages with sealed parts need no mark: they write a new one
    if stage.manifest_state == "missing" and needed and mark is not None and not stage.begun_with:
        return [_damage(stage, mark, "damaged")]
    return damage_of(stage, states)


def is_being_deleted(stage: StoredStage, states: Mapping[str, FileState]) -> bool:
    """Whether files are missing because --restart is deleting the stage right now: its manifest disappears, too."""
    bad = any(state in BAD for state in states.values())
    return bad and stage.manifest is not None and not (stage.folder / MANIFEST).exists()


def remedy_for(kind: Kind, gone: str, *, sealed: bool = False) -> str:
    """Return what to do about damage. Once damaged files and the manifest are deleted, a stage resumes from the rest.

    Some stages delete damaged files themselves. All stages do so for files that have seals.
    """
    stage = stage_of_kind(kind)
    if sealed or stage.mends:
        return f"Run `metarepair {stage.verb} --config FILE` again; it recreates damaged files."
    kept = "; it keeps the trials that have ended" if kind == "search" else ""
    return f"Delete {gone}, and run `metarepair {stage.verb} --config FILE` again{kept}."


def complaint(damaged: Sequence[Damage]) -> str:
    """Describe all damage in one paragraph, grouped by remedy, with at most ten files for each."""
    by_remedy: dict[str, list[str]] = {}
    for damage in damaged:
        by_remedy.setdefault(damage.remedy, []).append(f"{damage.path} {WORDS[damage.state]}")
    sentences = []
    for remedy, files in by_remedy.items():
        more = f" and {len(files) - 10} more, listed above" if len(files) > 10 else ""
        sentences.append(f"{', '.join(files[:10])}{more}. {remedy}")
    return f"{len(damaged)} damaged file{'s' * (len(damaged) > 1)}: {' '.join(sentences)}"


def _damage(stage: StoredStage, name: str, state: str) -> Damage:
    path, promised = stage.path_of(name), name in stage.promised
    gone = f"{path} and {stage.path_of(MANIFEST)}" if promised else path
    sealed = not promised and state != "damaged"
    return Damage(path=path, state=state, remedy=remedy_for(stage.kind, gone, sealed=sealed))

"""A stage's place and one listing of its run in; how much of it is there, and what is damaged, out.

Counted is what would be kept if its writer died now. Sizes are looked at, not bytes: nothing is hashed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from metarepair.inspection.checks import begun_mark, begun_name, read_promise, remedy_for
from metarepair.inspection.details import real, whole
from metarepair.inspection.facts import Damage
from metarepair.inspection.places import FileStat, Listing, StagePlace
from metarepair.runs.checkpoint import STATE
from metarepair.status.facts import Member
from tasks.storage.manifest import MANIFEST, Manifest
from tasks.storage.paths import Place, size_of
from tasks.storage.sealed_parts import SUFFIX

Stats = Mapping[str, FileStat]
Mark = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A member, with what the others may need to know of it."""

    place: StagePlace
    manifest: Manifest | None
    mark: Mark
    member: Member
    damaged: tuple[Damage, ...]


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """How far an unfinished member is."""

    done: int | None = None
    total: int | None = None
    seconds_left: float | None = None
    metrics: Mapping[str, float]
    passed_over: tuple[str, ...] = ()
    file: str | None = None  # whose time tells of the progress; the newest of all when not given


def look_at(place: StagePlace, stats: Stats) -> Looked:
    """One stage of a run that was begun; totals that others tell are not known yet."""
    manifest, state = read_promise(place.folder)
    mark = {} if manifest is not None else begun_mark(place)
    damaged = _damage(place, manifest, mark, manifest_damaged=state == "damaged")
    found = _progressed(place, mark) if manifest is None else _finished(place, manifest)
    telling = list(place.files) if found.file is None else [found.file]
    written = [stats[f"{place.path}/{name}"].written_s for name in telling]
    member = Member(
        path=place.path,
        name=place.name,
        role=place.role,
        state="begun" if manifest is None else "done",
        done=found.done,
        total=found.total,
        unit=place.stage.unit if found.done is not None else None,
        written=moment(max(written)) if written else None,
        metrics=dict(found.metrics),
        seconds_left=found.seconds_left,
        passed_over=found.passed_over,
    )
    return Looked(place=place, manifest=manifest, mark=mark, member=member, damaged=tuple(damaged))


def moment(seconds: float) -> str:
    """ISO 8601, of seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def sealed_parts(place: StagePlace) -> list[str]:
    """The parts of an unfinished stage that will not be made again."""
    pattern = place.stage.parts
    names = place.matching(pattern) if pattern is not None else []
    return [name for name in names if f"{name}{SUFFIX}" in place.files]


@dataclass(frozen=True, kw_only=True)
class Newest:
    """The newest checkpoint: what its state says, and that file; and the newer ones that are not whole."""

    state: Mapping[str, Any] | None
    name: str | None
    passed_over: tuple[str, ...]


def newest_checkpoint(folder: Place, files: Listing) -> Newest:
    """Of all under `folder`, whose files these are. Tensors are not read, but must be there."""
    names = [name for name in files if name.endswith(f"/{STATE}") and ".tmp" not in name]
    passed_over: list[str] = []
    for name in sorted(names, reverse=True):
        checkpoint = name.removesuffix(f"/{STATE}")
        try:
            state = json.loads((folder / name).read_text(encoding="utf-8"))
            if whole(state["episode"]) is not None and all(
                f"{checkpoint}/{n}" in files for n in state["files"]
            ):
                return Newest(state=state, name=name, passed_over=tuple(passed_over))
        except FileNotFoundError:
            continue  # an older one, which its writer has just deleted
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        passed_over.append(checkpoint)
    return Newest(state=None, name=None, passed_over=tuple(passed_over))


def training_metrics(state: Mapping[str, Any]) -> dict[str, float]:
    """The newest figures that a checkpoint's history has."""
    history = state.get("history")
    rows = [row for row in history if isinstance(row, dict)] if isinstance(history, list) else []
    found = {}
    for key in ("query_loss", "query_accuracy", "validation_accuracy"):
        values = (real(row.get(key)) for row in reversed(rows))
        value = next((value for value in values if value is not None), None)
        if value is not None:
            found[key] = value
    skipped = whole(state.get("skipped"))
    return found | ({"skipped_episodes": float(skipped)} if skipped else {})


def episodes_of(config: Any) -> int | None:
    """How many episodes the settings of a training ask for."""
    train = config.get("train") if isinstance(config, dict) else None
    return whole(train.get("episodes")) if isinstance(train, dict) else None


def _finished(place: StagePlace, manifest: Manifest) -> Progressed:
    if place.kind == "meta":
        episodes, wanted = whole(manifest.facts.get("episodes")), episodes_of(manifest.config)
        return Progressed(done=episodes, total=wanted, metrics={})
    accuracy = real(manifest.facts.get("clean_test_accuracy"))
    return Progressed(metrics={} if accuracy is None else {"clean_test_accuracy": accuracy})


def _progressed(place: StagePlace, mark: Mark) -> Progressed:
    if place.stage.parts is not None:
        return Progressed(done=len(sealed_parts(place)), total=whole(mark.get("parts")), metrics={})
    match place.kind:
        case "meta":
            return _training(place, mark)
        case "repaired":
            return Progressed(done=len(place.matching("*/*/model.safetensors")), metrics={})
        case "deployed":
            return _pretraining(place, mark)
        case _:
            return Progressed(metrics={})


def _training(place: StagePlace, mark: Mark) -> Progressed:
    newest = newest_checkpoint(place.folder, place.files)
    state, total = newest.state, episodes_of(mark.get("config"))
    if state is None:
        return Progressed(done=0, total=total, metrics={}, passed_over=newest.passed_over)
    done, seconds = state["episode"], real(state.get("seconds"))
    total = episodes_of(state.get("config")) or total
    known = done and seconds is not None and total is not None
    return Progressed(
        done=done,
        total=total,
        metrics=training_metrics(state),
        passed_over=newest.passed_over,
        file=newest.name,
        seconds_left=seconds / done * max(total - done, 0) if known else None,
    )


def _pretraining(place: StagePlace, mark: Mark) -> Progressed:
    try:
        rows = json.loads((place.folder / "epochs.json").read_text(encoding="utf-8"))
        last, seconds = dict(rows[-1]), [float(row["seconds"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        rows, last, seconds = [], {}, []
    settings = mark.get("config", {}).get("pretrain")
    total = whole(settings.get("epochs")) if isinstance(settings, dict) else None
    left = (
        sum(seconds) / len(seconds) * max(total - len(seconds), 0) if seconds and total is not None else None
    )
    shown = {key: real(last.get(key)) for key in ("loss", "validation_accuracy")}
    metrics = {key: value for key, value in shown.items() if value is not None}
    return Progressed(done=len(rows), total=total, metrics=metrics, seconds_left=left)


def _damage(
    place: StagePlace, manifest: Manifest | None, mark: Mark, *, manifest_damaged: bool
) -> list[Damage]:
    """What can be seen without reading the files: sizes, the manifest, and the mark of an unfinished stage."""
    if manifest_damaged:
        path = f"{place.path}/{MANIFEST}"
        return [Damage(path=path, state="damaged", remedy=remedy_for(place.kind, path))]
    if manifest is None:
        name = begun_name(place)
        if name is None or mark or place.kind not in ("meta", "deployed"):
            return []  # sealed parts need no mark: it is written anew
        path = f"{place.path}/{name}"
        return [Damage(path=path, state="damaged", remedy=remedy_for(place.kind, path))]
    found = []
    for name, (size, _) in manifest.files.items():
        there = place.files.get(name)
        if there != size:
            there = size_of(place.folder / name)  # it may have come after the listing
        if there != size:
            path = f"{place.path}/{name}"
            remedy = remedy_for(place.kind, f"{path} and {place.path}/{MANIFEST}")
            found.append(Damage(path=path, state="missing" if there is None else "differs", remedy=remedy))
    if found and not (place.folder / MANIFEST).exists():
        return []  # it is being deleted at this moment, by --restart
    return found

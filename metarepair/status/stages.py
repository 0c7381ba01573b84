"""A run's folder and one listing of it in; its stages, those that are not begun among them, and what is damaged, out.

Nothing on storage says what a run is going to do, so that follows from what it has: every environment gets features,
every target is trained for and repaired. What a run of another kind (a study of the hypothesis, a search, a
pretraining) does not do is not expected of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from metarepair.inspection.details import whole
from metarepair.inspection.facts import Damage
from metarepair.inspection.places import stages_of_run
from metarepair.status.compare import look_at_comparison
from metarepair.status.facts import Member, StageStatus
from metarepair.status.members import Looked, Stats, look_at, moment, sealed_parts
from metarepair.status.unused import unused_paths
from tasks.storage.lease import Owner
from tasks.storage.paths import Place
from tasks.storage.stages import LISTED, REPAIRED

_NAMES = list(dict.fromkeys(stage.name for stage in LISTED))
# A report has no manifest, so it is not in the table; it is made of repairs.
ORDER = (*_NAMES[: (after := _NAMES.index(REPAIRED.name) + 1)], "report", *_NAMES[after:])
REPORT = "report/index.html"
FEWEST_PARTS = 3  # written by the present owner, for a pace


@dataclass(frozen=True, kw_only=True)
class Stages:
    """All stages of a run, what is damaged in them, and the environments that are not counted."""

    stages: tuple[StageStatus, ...]
    damaged: tuple[Damage, ...]
    unused: tuple[str, ...]


def look_at_stages(root: Place, stats: Stats, owner: Owner | None) -> Stages:
    """`owner`: who writes in the run now, if somebody does; the pace is that of its parts."""
    places = stages_of_run(root, {name: stat.size_bytes for name, stat in stats.items()})
    everything = [look_at(place, stats) for place in places]
    comparison = look_at_comparison(root, everything, stats)
    # Whoever writes in the run now may be about to go on with any of them.
    unused = unused_paths(everything, comparison.plan, stats) if owner is None else frozenset()
    looked = [one for one in everything if one.place.path not in unused]
    totals = _totals(everything)
    members: dict[str, list[Member]] = {name: [] for name in ORDER}
    for one in (one for one in looked if one.place.kind != "compared"):
        total = one.member.total if one.member.total is not None else totals.get(one.place.path)
        members[one.place.stage.name].append(replace(one.member, total=total))
    members["compare"] = [*comparison.members]
    for name, paths in _expected(looked, stats).items():
        there = {member.path for member in members[name]}
        members[name] += [_not_begun(path) for path in paths if path not in there]
    if REPORT in stats:
        members["report"] = [_report(stats)]
    searched = any(name.startswith("search/") for name in stats)
    compares = owner is not None and owner.verb == "compare"
    kept = _kept(members, searched=searched, compares=compares)
    return Stages(
        stages=tuple(
            StageStatus(
                name=name,
                members=tuple(sorted(members[name], key=lambda member: member.path)),
                seconds_left=_left(
                    members[name],
                    comparison.done_at if name == "compare" else _parts_at(members[name], looked, stats),
                    owner,
                ),
            )
            for name in kept
        ),
        damaged=tuple(damage for one in everything for damage in one.damaged) + comparison.damaged,
        unused=tuple(
            one.place.path
            for one in everything
            if one.place.kind == "environment" and one.place.path in unused
        ),
    )


def _expected(looked: Sequence[Looked], stats: Stats) -> dict[str, list[str]]:
    """Paths that a run with these environments will have, by stage."""
    environments = [one.place for one in looked if one.place.kind == "environment"]
    targets = [place.name for place in environments if place.role == "target"]
    without = {one.place.name for one in looked if one.place.kind == "repaired" and _needs_no_training(one)}
    return {
        "features": [f"features/{place.role}-{place.name}" for place in environments],
        "score": ["score"] if environments else [],
        "train": [f"meta/{target}" for target in targets if target not in without],
        "repair": [f"repaired/{target}" for target in targets],
        "report": ["report"] if environments and REPORT not in stats else [],
    }


def _needs_no_training(repaired: Looked) -> bool:
    """Whether a target was repaired by other methods alone."""
    settings = repaired.manifest.config.get("repair") if repaired.manifest is not None else None
    methods = settings.get("methods") if isinstance(settings, dict) else None
    return isinstance(methods, list) and "metarepair" not in methods


def _kept(members: Mapping[str, Sequence[Member]], *, searched: bool, compares: bool) -> list[str]:
    """The stages that are told of: all of a run, or those that a run of another kind has."""
    begun = {name for name, found in members.items() if any(member.state != "not begun" for member in found)}
    planned = {"compare"} if members["compare"] else set()
    of_a_run = [
        name for name in ORDER if name not in {"pretrain", "prepare", "compare", "hypothesis"} - planned
    ]
    if not begun & {"repair", "report"} and (compares or planned or "prepare" in begun):
        of_a_run = ["mine", "compare"]  # and what its methods need, which comes before it
    elif not begun & {"train", "repair", "report"}:
        if "hypothesis" in begun:
            of_a_run = ["mine", "features", "score"]
        elif searched:
            of_a_run = ["mine", "features"]
        elif begun == {"pretrain"}:
            of_a_run = []
    known = "mine" in begun  # then a stage without members has nothing to do
    return [name for name in ORDER if name in begun or (name in of_a_run and (members[name] or not known))]


def _not_begun(path: str) -> Member:
    group, _, name = path.partition("/")
    role: str | None = None
    if group == "features":
        role, _, name = name.partition("-")
    return Member(path=path, name=name or None, role=role, state="not begun", metrics={})


def _report(stats: Stats) -> Member:
    written = moment(stats[REPORT].written_s)
    return Member(path="report", name=None, role=None, state="done", written=written, metrics={})


def _totals(looked: Sequence[Looked]) -> dict[str, int]:
    """How many units unfinished stages have, where other stages tell: by path."""
    mined = {one.place.path: one for one in looked if one.place.kind == "environment"}
    targets = sum(one.place.role == "target" for one in mined.values())
    found: dict[str, int | None] = {}
    for one in (one for one in looked if one.manifest is None):
        settings = one.mark.get("config", {})
        match one.place.kind:
            case "environment":
                images = _images(one, mined.values())
                found[one.place.path] = _parts(images, settings.get("mining.shard_images"))
            case "features":
                source = mined.get(f"{one.place.role}s/{one.place.name}")
                rows = source.manifest.rows.get("collect") if source and source.manifest else None
                found[one.place.path] = _parts(rows, settings.get("shard_images"))
            case "hypothesis":
                repair = settings.get("repair")
                seeds = repair.get("seeds") if isinstance(repair, dict) else None
                found[one.place.path] = targets * len(seeds) if isinstance(seeds, list) else None
    return {path: total for path, total in found.items() if total is not None}


def _images(one: Looked, environments: Iterable[Looked]) -> int | None:
    """How many images the split of an environment has, as another of the same split that is finished has counted."""
    for other in environments:
        same = other.manifest is not None and other.manifest.inputs == one.mark.get("inputs")
        if same and other.manifest is not None and other.place.role == one.place.role:
            examined = other.manifest.facts.get("examined")
            counts = [whole(count) for count in examined.values()] if isinstance(examined, dict) else []
            return max((count for count in counts if count is not None), default=None)
    return None


def _parts(rows: int | None, size: object) -> int | None:
    return -(-rows // size) if rows is not None and isinstance(size, int) and size > 0 else None


def _parts_at(members: Sequence[Member], looked: Sequence[Looked], stats: Stats) -> list[float]:
    """When the sealed parts of those that are not done were written."""
    paths = {member.path for member in members if member.state != "done"}
    return [
        stats[f"{one.place.path}/{name}"].written_s
        for one in looked
        if one.place.path in paths
        for name in sealed_parts(one.place)
    ]


def _left(members: Sequence[Member], written: Sequence[float], owner: Owner | None) -> float | None:
    """Seconds at the pace at which the present owner wrote its parts; None where that says nothing."""
    missing = [member for member in members if member.state != "done"]
    units = [
        member.total - member.done
        for member in missing
        if member.total is not None and member.done is not None
    ]
    if owner is None or not sum(units) or len(units) < len(missing):
        return None
    since = datetime.fromisoformat(owner.since).timestamp()
    recent = [moment for moment in written if moment >= since]
    if len(recent) < FEWEST_PARTS:
        return None
    return (max(recent) - min(recent)) / (len(recent) - 1) * sum(units)

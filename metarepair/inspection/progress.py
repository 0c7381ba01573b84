"""Report the progress of each stage of a run, including stages not started, and estimate the time left.

The storage does not record what a run will do, so that is inferred from what exists: every environment gets
features, and every target gets meta-training and a repair. Other kinds of run (a study of the hypothesis, a search,
a pretraining) are not expected to have the stages that they do not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from metarepair.config.run import SHARED
from metarepair.inspection.comparison import comparison_of
from metarepair.inspection.damage import damage_by_size
from metarepair.inspection.facts import Damage, Member, StageStatus
from metarepair.inspection.members import member_of, moment
from metarepair.inspection.seeds import seed_members
from metarepair.inspection.stored import StoredStage, read_stage, sealed_parts, section, whole
from metarepair.inspection.unused import REPORT, unused_paths
from metarepair.inspection.walk import Listing, stages_of_run
from tasks.storage.lease import Owner
from tasks.storage.paths import Place
from tasks.storage.stages import LISTED, REPAIRED

_NAMES = list(dict.fromkeys(stage.name for stage in LISTED))
# A report has no manifest, so it is not in the table of stages. It is made from repairs.
ORDER = (*_NAMES[: (after := _NAMES.index(REPAIRED.name) + 1)], "report", *_NAMES[after:])
OF_A_KIT = ("mine", "features", "score", "joint", "train", "kit")
FEWEST_PARTS = 3  # parts that the current owner must have written before its pace is estimated


@dataclass(frozen=True, kw_only=True)
class Progress:
    """All stages of a run, their damage, and the environments that the run no longer uses."""

    stages: tuple[StageStatus, ...]
    damaged: tuple[Damage, ...]
    unused: tuple[str, ...]


def progress_of(root: Place, files: Listing, owner: Owner | None) -> Progress:
    """Return the progress of the run at `root`.

    owner: the process that is writing to it now; the time left is estimated from its pace.
    """
    everything = [read_stage(folder) for folder in stages_of_run(root, files)]
    damaged = [damage for stage in everything for damage in damage_by_size(stage)]
    comparison = comparison_of(root, everything)
    # A process that is writing to the run may be about to use any environment.
    unused = unused_paths(everything, comparison.plan, files) if owner is None else frozenset()
    used = [stage for stage in everything if stage.path not in unused]
    totals = _totals(everything)
    members: dict[str, list[Member]] = {name: [] for name in ORDER}
    for stage in (stage for stage in used if stage.kind != "compared"):
        member = member_of(stage)
        total = member.total if member.total is not None else totals.get(stage.path)
        members[stage.stage.name].append(replace(member, total=total))
    has_seeds = comparison.plan is not None and comparison.plan.has_seed_runs
    if comparison.plan is not None and has_seeds:
        members["compare"], of_seeds = seed_members(root, files, comparison.plan)
        damaged += of_seeds
    else:
        members["compare"] = [*comparison.members]
    for name, paths in _expected(used, files).items():
        there = {member.path for member in members[name]}
        members[name] += [_not_begun(path) for path in paths if path not in there]
    if REPORT in files:
        members["report"] = [_report(files)]
    searched = any(name.startswith("search/") for name in files)
    compares = owner is not None and owner.verb == "compare"
    kept = (
        _kept_of_kit(members)
        if _is_kit(everything, owner)
        else _kept(members, searched=searched, compares=compares, has_seeds=has_seeds)
    )
    return Progress(
        stages=tuple(
            StageStatus(
                name=name,
                members=tuple(members[name] if name == "compare" else sorted(members[name], key=_path)),
                seconds_left=_left(
                    members[name],
                    comparison.done_at if name == "compare" else _parts_at(members[name], used),
                    owner,
                ),
            )
            for name in kept
        ),
        damaged=(*damaged, *comparison.damaged),
        unused=tuple(
            stage.path for stage in everything if stage.kind == "environment" and stage.path in unused
        ),
    )


def _expected(stages: Sequence[StoredStage], files: Listing) -> dict[str, list[str]]:
    """Return, for each stage, the paths that a run with these environments will have."""
    environments = [stage for stage in stages if stage.kind == "environment"]
    targets = [stage.name for stage in environments if stage.role == "target"]
    past = [stage.name for stage in environments if stage.role == "experience" and stage.name not in targets]
    merges = any(stage.kind == "merged" for stage in stages)
    without = {stage.name for stage in stages if stage.kind == "repaired" and _needs_no_training(stage)}
    return {
        "features": [f"features/{stage.role}-{stage.name}" for stage in environments],
        "score": ["score"] if environments else [],
        "merged": [f"merged/{experience}" for experience in past] if merges else [],
        "train": []
        if any(stage.path == f"meta/{SHARED}" or _scored_with_kit(stage) for stage in stages)
        else [f"meta/{target}" for target in targets if target not in without],
        "repair": [f"repaired/{target}" for target in targets],
        "report": ["report"] if environments and REPORT not in files else [],
    }


def _scored_with_kit(stage: StoredStage) -> bool:
    """Whether the run has the distances of a repair kit, whose θ_meta it uses."""
    return stage.kind == "score" and stage.manifest is not None and "kit" in stage.manifest.inputs


def _needs_no_training(repaired: StoredStage) -> bool:
    """Whether a target was repaired only by methods that do not start from θ_meta."""
    return repaired.manifest is not None and "meta" not in repaired.manifest.inputs


def _path(member: Member) -> str:
    return member.path


def _is_kit(stages: Sequence[StoredStage], owner: Owner | None) -> bool:
    """Whether the run is a repair kit, finished or not: it has a pack, or was scored without targets."""
    scored = any(stage.kind == "score" and stage.config.get("targets") == [] for stage in stages)
    return (
        scored or any(stage.kind == "kit" for stage in stages) or (owner is not None and owner.verb == "kit")
    )


def _kept_of_kit(members: Mapping[str, Sequence[Member]]) -> list[str]:
    """Return the stages of a kit to show: all of them until it is packed, then those that it still holds."""
    begun = {name for name, found in members.items() if any(member.state != "not begun" for member in found)}
    packed = any(member.state == "done" for member in members["kit"])
    return [name for name in ORDER if name in begun or (not packed and name in OF_A_KIT)]


def _kept(
    members: Mapping[str, Sequence[Member]], *, searched: bool, compares: bool, has_seeds: bool
) -> list[str]:
    """Return the stages to show: those of a whole run, or of another kind of run."""
    begun = {name for name, found in members.items() if any(member.state != "not begun" for member in found)}
    if has_seeds:  # the runs of the seeds have the other stages
        return [name for name in ORDER if name in begun | {"compare"}]
    extra = {"pretrain", "joint", "merged", "prepare", "compare", "hypothesis"}
    planned = {name for name in ("joint", "merged", "compare") if members[name]}
    of_a_run = [name for name in ORDER if name not in extra - planned]
    if not begun & {"repair", "report"} and (compares or members["compare"] or "prepare" in begun):
        of_a_run = ["mine", "compare"]  # and the stages that its methods need, which precede it
    elif not begun & {"train", "repair", "report"}:
        if "hypothesis" in begun:
            of_a_run = ["mine", "features", "score"]
        elif searched:
            of_a_run = ["mine", "features"]
        elif begun == {"pretrain"}:
            of_a_run = []
    known = "mine" in begun  # if so, a stage without members has nothing to do
    return [name for name in ORDER if name in begun or (name in of_a_run and (members[name] or not known))]


def _not_begun(path: str) -> Member:
    group, _, name = path.partition("/")
    role: str | None = None
    if group == "features":
        role, _, name = name.partition("-")
    return Member(path=path, name=name or None, role=role, state="not begun", metrics={})


def _report(files: Listing) -> Member:
    written = moment(files[REPORT].written_s)
    return Member(path="report", name=None, role=None, state="done", written=written, metrics={})


def _totals(stages: Sequence[StoredStage]) -> dict[str, int]:
    """Return the number of units of each unfinished stage, by path, where other stages determine it."""
    mined = {stage.path: stage for stage in stages if stage.kind == "environment"}
    targets = sum(stage.role == "target" for stage in mined.values())
    found: dict[str, int | None] = {}
    for stage in (stage for stage in stages if stage.manifest is None):
        match stage.kind:
            case "environment":
                images = _images(stage, mined.values())
                found[stage.path] = _parts(images, stage.config.get("mining.shard_images"))
            case "features":
                source = mined.get(f"{stage.role}s/{stage.name}")
                rows = source.manifest.rows.get("collect") if source and source.manifest else None
                found[stage.path] = _parts(rows, stage.config.get("shard_images"))
            case "hypothesis":
                seeds = section(stage.config, "repair").get("seeds")
                found[stage.path] = targets * len(seeds) if isinstance(seeds, list) else None
    return {path: total for path, total in found.items() if total is not None}


def _images(stage: StoredStage, environments: Iterable[StoredStage]) -> int | None:
    """Return an environment's number of images, taken from a finished environment of the same split."""
    for other in environments:
        same = other.manifest is not None and other.manifest.inputs == stage.begun_with.get("inputs")
        if same and other.role == stage.role:
            counts = [whole(count) for count in section(other.facts, "examined").values()]
            return max((count for count in counts if count is not None), default=None)
    return None


def _parts(rows: int | None, size: object) -> int | None:
    return -(-rows // size) if rows is not None and isinstance(size, int) and size > 0 else None


def _parts_at(members: Sequence[Member], stages: Sequence[StoredStage]) -> list[float]:
    """Return the times at which unfinished stages' sealed parts were written, in seconds since 1970."""
    paths = {member.path for member in members if member.state != "done"}
    return [stage.files[n].written_s for stage in stages if stage.path in paths for n in sealed_parts(stage)]


def _left(members: Sequence[Member], written: Sequence[float], owner: Owner | None) -> float | None:
    """Return the seconds left at the current owner's pace; None if it has written too few parts."""
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

"""Report the progress of a comparison for each target, from its plan and its repairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metarepair.compare.plan import PLAN, Plan, read_plan
from metarepair.inspection.damage import remedy_for
from metarepair.inspection.facts import Damage, Member
from metarepair.inspection.members import moment
from metarepair.inspection.stored import JUDGED, StoredStage
from tasks.errors import DataError
from tasks.storage.manifest import MANIFEST
from tasks.storage.paths import Place
from tasks.storage.sealed_parts import SUFFIX, has_identity

FOLDER = "compare"


@dataclass(frozen=True, kw_only=True)
class ComparisonProgress:
    """Progress of a comparison: its plan, its targets, and when each repair finished, in seconds since 1970."""

    plan: Plan | None
    members: tuple[Member, ...]
    done_at: tuple[float, ...]
    damaged: tuple[Damage, ...]


def comparison_of(root: Place, stages: Sequence[StoredStage]) -> ComparisonProgress:
    """Return the progress of the comparison in the run at `root`. `stages` holds the run's stages of all kinds.

    If the plan includes a target, its repairs that are not in the plan come from an earlier comparison and are
    left out.
    """
    plan, damaged = _plan(root)
    cells = {str(one.name): one for one in stages if one.kind == "compared"}
    targets = sorted({*(name.split("/")[0] for name in cells), *(plan.targets if plan is not None else ())})
    done = [one for one in cells.values() if one.manifest is not None and MANIFEST in one.files]
    return ComparisonProgress(
        plan=plan,
        members=tuple(_member(target, cells, plan) for target in targets),
        done_at=tuple(one.files[MANIFEST].written_s for one in done),
        damaged=damaged,
    )


def _plan(root: Place) -> tuple[Plan | None, tuple[Damage, ...]]:
    try:
        return read_plan(root / FOLDER), ()
    except DataError:
        path = f"{FOLDER}/{PLAN}"
        return None, (Damage(path=path, state="damaged", remedy=remedy_for("compared", path, sealed=True)),)


def _member(target: str, cells: dict[str, StoredStage], plan: Plan | None) -> Member:
    planned = plan is not None and target in plan.targets
    names = (
        [f"{target}/{m}/{s}" for m in plan.methods for s in plan.seeds] if plan and planned else list(cells)
    )
    own = [cells[name] for name in names if name in cells and name.split("/")[0] == target]
    done = [one for one in own if one.manifest is not None]
    judged = sum(_is_judged(one, plan) for one in done)
    total = len(names) if planned else None
    whole = judged == (total if total is not None else len(own))
    written = [file.written_s for one in own for file in one.files.values()]
    return Member(
        path=f"{FOLDER}/{target}",
        name=target,
        role=None,
        state="not begun" if not own else "done" if whole else "begun",
        done=len(done),
        total=total,
        unit="repairs",
        judged=judged,
        written=moment(max(written)) if written else None,
        metrics={},
    )


def _is_judged(one: StoredStage, plan: Plan | None) -> bool:
    """Whether both judgement files are sealed, with the plan's judging settings if the plan has any.

    The row file is sealed last, so checking its seal's identity is enough for both.
    """
    if not all(name in one.files and f"{name}{SUFFIX}" in one.files for name in JUDGED):
        return False
    identity = plan.judging(one.manifest.digest) if plan is not None and one.manifest is not None else None
    row = JUDGED[0]
    return identity is None or has_identity(one.folder / row, identity | {"file": row})

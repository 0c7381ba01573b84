"""Report the progress of a comparison whose seeds have runs of their own (`compare.vary: everything`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from metarepair.compare.plan import Plan
from metarepair.inspection.comparison import comparison_of
from metarepair.inspection.damage import damage_by_size
from metarepair.inspection.facts import Damage, Member
from metarepair.inspection.members import moment
from metarepair.inspection.stored import read_stage
from metarepair.inspection.walk import Listing, stages_of_run, under
from metarepair.runs.layout import SEEDS
from tasks.storage.paths import Place

ROLE = "seed"  # of the members of such a comparison


def seed_members(root: Place, files: Listing, plan: Plan) -> tuple[list[Member], list[Damage]]:
    """Return a member for each planned seed, and the damage of their runs. `root`: the comparison's own run."""
    members, damaged = [], []
    for seed in plan.seeds:
        prefix = f"{SEEDS}/{seed}/"
        stages = [read_stage(folder) for folder in stages_of_run(root, files, prefix=prefix)]
        damaged += [damage for stage in stages for damage in damage_by_size(stage)]
        own = comparison_of(root / SEEDS / str(seed), stages)
        damaged += [replace(damage, path=f"{prefix}{damage.path}") for damage in own.damaged]
        members.append(_member(seed, own.members, under(files, prefix), plan))
    return members, damaged


def _member(seed: int, targets: Sequence[Member], files: Listing, plan: Plan) -> Member:
    """The member of one seed; `targets`: those of its comparison, `files`: those of its run."""
    whole = bool(targets) and all(target.state == "done" for target in targets)
    return Member(
        path=f"{SEEDS}/{seed}",
        name=str(seed),
        role=ROLE,
        state="not begun" if not files else "done" if whole else "begun",
        done=sum(target.done or 0 for target in targets),
        total=len(plan.targets) * len(plan.methods),
        unit="repairs",
        judged=sum(target.judged or 0 for target in targets),
        written=moment(max(file.written_s for file in files.values())) if files else None,
        metrics={},
    )

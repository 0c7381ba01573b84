"""Find the environments that a run no longer uses, so that its status does not wait for them.

The manifest of `score`, and the plan of a comparison, name the environments that they were made from. An environment
that neither names, and that was last written before them, belongs to earlier settings of the run. An environment
that was written later may be new, and is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from metarepair.compare.plan import PLAN, Plan
from metarepair.inspection.stored import StoredStage
from metarepair.inspection.walk import Listing
from tasks.storage.manifest import MANIFEST

SCORE, REPORT = f"score/{MANIFEST}", "report/index.html"


def unused_paths(stages: Sequence[StoredStage], plan: Plan | None, files: Listing) -> frozenset[str]:
    """Return the paths of unused environments and of the stages made from them.

    A repaired target counts as used, even if a later score is for other targets.
    """
    named = dict(_named(stages, plan))
    if not named:
        return frozenset()
    used = frozenset().union(*named.values())
    since_s = max(files[path].written_s for path in (*named, REPORT) if path in files)
    repaired = {one.path for one in stages if one.kind == "repaired" and one.manifest is not None}
    found: set[str] = set()
    for one in (one for one in stages if one.kind == "environment"):
        group = _made_from(f"{one.role}", f"{one.name}")
        written = (s.written_s for path, s in files.items() if path.startswith(tuple(f"{p}/" for p in group)))
        if one.path not in used and not repaired & group and max(written) < since_s:
            found |= group
    return frozenset(found)


def _made_from(role: str, name: str) -> frozenset[str]:
    made = {f"{role}s/{name}", f"features/{role}-{name}"}
    return frozenset(made | ({f"meta/{name}", f"repaired/{name}"} if role == "target" else set()))


def _named(stages: Sequence[StoredStage], plan: Plan | None) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield each file that names environments, with the paths of those environments."""
    score = next((one.manifest for one in stages if one.kind == "score"), None)
    if score is not None:
        mined, targets = score.config.get("mined"), score.config.get("targets")
        if isinstance(mined, list) and isinstance(targets, list):
            yield SCORE, _paths(mined, targets)
    if plan is not None and plan.experiences is not None:
        yield f"compare/{PLAN}", _paths(plan.experiences, plan.targets)


def _paths(experiences: Sequence[object], targets: Sequence[object]) -> frozenset[str]:
    return frozenset(
        [*(f"experiences/{name}" for name in experiences), *(f"targets/{name}" for name in targets)]
    )

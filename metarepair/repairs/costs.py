"""What each method's preparation and repairs took: seconds, core-seconds, and images that passed through the DNN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metarepair.config.run import SHARED, Config
from metarepair.methods import get_method
from metarepair.methods.budget import Cost, cost_of
from metarepair.runs.layout import Run
from tasks.storage.manifest import require_manifest
from tasks.storage.paths import Place
from tasks.storage.stages import JOINT, MERGED, META, PREPARED, Stage

Row = Mapping[str, Any]


def preparation_cost(runs: Sequence[Run], config: Config, name: str, targets: Sequence[str]) -> Cost | None:
    """A method's preparation for one of these targets, the mean over them and over the runs.

    What serves all targets is divided by their number. None if the method prepares nothing. Raises StageError if the
    preparation is not complete; those of other targets need not be.
    """
    found = []
    for run in runs:
        shared = [_cost(*one) for one in _shared(run, config, name)]
        own = [_cost(run.meta(target), META) for target in targets if _trains_for_each(config, name)]
        if shared:
            found.append(divided(sum(shared, Cost()), len(config.targets) * len(runs)))
        if own:
            found.append(divided(sum(own, Cost()), len(own) * len(runs)))
    return sum(found, Cost()) if found else None


def repair_cost(rows: Sequence[Row]) -> Cost:
    """The mean cost of the repairs in these rows; zeros for what older rows do not have."""
    return divided(sum(map(cost_of, rows), Cost()), len(rows))


def divided(cost: Cost, parts: int) -> Cost:
    """One of equal parts of a cost."""
    return Cost(
        seconds=cost.seconds / parts,
        core_seconds=cost.core_seconds / parts,
        forward_images=round(cost.forward_images / parts),
        backward_images=round(cost.backward_images / parts),
    )


def _cost(folder: Place, stage: Stage) -> Cost:
    return cost_of(require_manifest(folder, stage.remedy).facts)


def _trains_for_each(config: Config, name: str) -> bool:
    return "experiences" in get_method(name).uses and not config.one_for_all


def _shared(run: Run, config: Config, name: str) -> Iterator[tuple[Place, Stage]]:
    """The folders of everything that a method prepares in a run once, for all targets."""
    method = get_method(name)
    if method.prepares:
        yield run.prepared(name), PREPARED
    if "joint" in method.uses or ("experiences" in method.uses and config.train.start == "joint"):
        yield run.joint, JOINT
    if "merged" in method.uses:
        yield from ((run.merged(experience), MERGED) for experience in config.shared_experiences)
    if "experiences" in method.uses and config.one_for_all:
        yield run.meta(SHARED), META

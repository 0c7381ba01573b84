"""What each method's preparation and repairs took: seconds, core-seconds, and images that passed through the DNN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metarepair.config.run import Config
from metarepair.methods import get_method
from metarepair.methods.budget import Cost, cost_of
from metarepair.runs.layout import Run
from tasks.storage.manifest import require_manifest
from tasks.storage.paths import Place
from tasks.storage.stages import JOINT, MERGED, META, PREPARED, Stage

Row = Mapping[str, Any]


def preparation_cost(runs: Sequence[Run], config: Config, name: str, targets: int) -> Cost | None:
    """A method's preparation for one target: all of it, divided by the number of targets; the mean over the runs.

    None if the method prepares nothing. Raises StageError if the preparation is not complete.
    """
    facts = [
        require_manifest(folder, stage.remedy).facts
        for run in runs
        for folder, stage in _preparations(run, config, name)
    ]
    if not facts:
        return None
    return divided(sum(map(cost_of, facts), Cost()), targets * len(runs))


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


def _preparations(run: Run, config: Config, name: str) -> Iterator[tuple[Place, Stage]]:
    """The folders of everything that a method prepares in a run, for all targets."""
    method = get_method(name)
    if method.prepares:
        yield run.prepared(name), PREPARED
    if "joint" in method.uses or ("experiences" in method.uses and config.train.start == "joint"):
        yield run.joint, JOINT
    if "merged" in method.uses:
        yield from ((run.merged(experience), MERGED) for experience in config.shared_experiences)
    if "experiences" in method.uses:
        yield from ((run.meta(training), META) for training in config.trainings)

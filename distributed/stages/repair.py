"""A target in, its repair done by a Ray task out."""

from __future__ import annotations

from distributed.on_ray.on_worker import Say, call_on_worker
from metarepair.config.run import Config
from metarepair.data.workspace import load_surroundings
from metarepair.repairs.stage import repair_target
from metarepair.runs.layout import Run
from tasks.storage.paths import place


def repair_on_ray(run: Run, config: Config, target: str, say: Say) -> None:
    """Repairs and judges `target` on a worker. Raises what the repair raised; a UserError as itself."""
    call_on_worker(_repair, config, str(run.root), target, say=say)


def _repair(config: Config, root: str, target: str, say: Say) -> None:
    repair_target(Run(place(root)), config, target, load_surroundings(config), say)

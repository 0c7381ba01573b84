"""Repair the deployed DNN for each experience that is no target, up to `merged/<experience>/` of a run.

Each repair is a stage of its own, so an interrupted preparation skips those that are complete, and resumes the others
from their checkpoints. `metarepair.repairs.merged` averages them for a target.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from metarepair.adaptation.repair_data import RepairData, split_collected
from metarepair.config.run import Config
from metarepair.config.section import LARGEST
from metarepair.data.learned_images import collected, learned_images
from metarepair.data.workspace import Surroundings
from metarepair.methods import MethodContext, settings_of
from metarepair.methods.budget import core_seconds_budget
from metarepair.methods.merged import ExperienceRepair
from metarepair.models.build import save_weights
from metarepair.repairs.saved import WEIGHTS
from metarepair.repairs.stage import refuse_not_finite, repair_fairly
from metarepair.runs.layout import Run
from metarepair.runs.progress import Progress
from metarepair.runs.run_stage import StageOutput, run_stage
from metarepair.stages.executor import Executor
from metarepair.stages.together import each_at_once
from tasks.experiences.store import open_side
from tasks.storage.manifest import Manifest, check_done, require_manifest, verify_checksums
from tasks.storage.settings import Settings
from tasks.storage.stages import EXPERIENCE, MERGED

logger = logging.getLogger(__name__)
REPAIR = ExperienceRepair()


def merged_settings(config: Config) -> Settings:
    """The settings that the repair of an experience depends on."""
    values = config.settings(include={"seed", "model"})
    values["validation_fraction"] = config.repair.validation_fraction
    values["settings"] = settings_of(config, REPAIR.name).settings()
    return values | config.budget_settings(parts=len(config.shared_experiences))


def repair_experiences(run: Run, config: Config, here: Surroundings, executor: Executor) -> None:
    """Repair for every experience that is no target, for as many at once as the executor has room for."""
    names = config.shared_experiences
    waiting = [name for name in names if done_experience(run, config, name, here) is None]
    done = len(names) - len(waiting)
    if not waiting:
        logger.info(f"merged: all {done} repairs of experiences are already complete")
        return
    progress = Progress("merged", len(names), "repairs", done=done)

    def repair(name: str) -> None:
        executor.call(repair_experience, run, name, here)
        progress.advance(note=name)

    each_at_once(repair, waiting, at_once=executor.repairs_at_once)


def done_experience(run: Run, config: Config, name: str, here: Surroundings) -> Manifest | None:
    """The manifest of an experience's repair, or None if it is unfinished. Raises StageError as `check_done` does."""
    return check_done(run.merged(name), stage=MERGED.title(name), **_terms(run, config, name, here))


def repair_experience(run: Run, config: Config, name: str, here: Surroundings) -> Manifest:
    """Repair for one experience. Skipped if complete; resumed from its checkpoint."""
    make = partial(_repair, run, config, name, here)
    return run_stage(MERGED, run.merged(name), make, names=[name], **_terms(run, config, name, here))


def _terms(run: Run, config: Config, name: str, here: Surroundings) -> dict[str, Any]:
    """`config` and `inputs` of the repair's manifest."""
    inputs = {"experience": require_manifest(run.experience(name), EXPERIENCE.remedy).digest}
    inputs["deployed"] = here.inputs()["deployed"]
    return {"config": merged_settings(config), "inputs": inputs | here.clean_inputs()}


def _repair(run: Run, config: Config, name: str, here: Surroundings) -> StageOutput:
    folder = run.merged(name)
    core_seconds = config.core_seconds(parts=len(config.shared_experiences))
    settings = settings_of(config, REPAIR.name)
    if core_seconds is not None:  # it decides, not the epochs
        settings = settings.model_copy(update={"epochs": LARGEST})
    context = MethodContext(
        config=config,
        seed=config.seed,
        settings=settings,
        budget=core_seconds_budget(core_seconds),
        folder=folder,
        say=lambda line: logger.info(f"experience {name}: {line}"),
    )
    repaired = repair_fairly(REPAIR, here.deployed, experience_data(run, config, name, here), context)
    refuse_not_finite(repaired, f"experience {name}", config.seed)
    save_weights(folder / WEIGHTS, repaired.state(), {"model": config.model.name, "experience": name})
    cost = context.budget.cost()
    logger.info(f"experience {name}: repaired in {cost.seconds:.1f} s, to be merged")
    return StageOutput(
        files=[WEIGHTS],
        facts=asdict(cost)
        | {
            "images_seen": repaired.images_seen,
            "gradient_steps": repaired.gradient_steps,
            "workers": config.workers,
        },
    )


def experience_data(run: Run, config: Config, name: str, here: Surroundings) -> RepairData:
    """An experience's D_collect in its two parts, and the clean images; no failure is of a held-out clean image."""
    mined = require_manifest(run.experience(name), EXPERIENCE.remedy)
    verify_checksums(run.experience(name), mined)
    learned = learned_images(here, name)
    collect = open_side(run.experience(name), "collect", mined, learned.source)
    collect = collected(collect, learned)
    return replace(split_collected(collect, config, 0, learned.source), clean=here.clean())

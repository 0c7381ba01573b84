"""Prepare a method before any target is known, once for all targets."""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings
from metarepair.methods import MethodContext, get_method, settings_of
from metarepair.methods.base import Map
from metarepair.methods.budget import core_seconds_budget
from metarepair.runs.layout import Run
from metarepair.runs.run_stage import StageOutput, run_stage
from tasks.errors import DataError, StageError
from tasks.records import Failures
from tasks.storage.manifest import MANIFEST, Manifest, begin, check_done, discard
from tasks.storage.paths import Place, find, inside
from tasks.storage.settings import Settings
from tasks.storage.stages import BEGUN, PREPARED

logger = logging.getLogger(__name__)
KEPT = (".safetensors", ".json", ".seal")


def preparation_settings(config: Config, name: str) -> Settings:
    """The settings that a preparation depends on."""
    names = get_method(name).prepared_by
    own = settings_of(config, name).settings(include=None if names is None else set(names))
    return config.settings(include={"seed", "model"}) | {"settings": own} | config.budget_settings()


def prepare_method(
    run: Run, config: Config, name: str, here: Surroundings, *, map_pieces: Map
) -> Manifest | None:
    """Prepare the method `name`, or resume its preparation. Skipped if complete, or if it prepares nothing."""
    method = get_method(name)
    if not method.prepares:
        return None
    folder, terms = run.prepared(name), _terms(config, name, here)
    make = partial(_prepare, config, name, here, folder=folder, map_pieces=map_pieces)
    return run_stage(PREPARED, folder, make, names=[name], **terms)


def _prepare(config: Config, name: str, here: Surroundings, *, folder: Place, map_pieces: Map) -> StageOutput:
    budget = core_seconds_budget(config.core_seconds())
    context = MethodContext(
        config=config,
        seed=config.seed,
        settings=settings_of(config, name),
        budget=budget,
        map=map_pieces,
        device=config.device,
        prepared=folder,
    )
    none = _no_failures(here)
    data = RepairData(target="none", learn=none, validation=none, clean=here.clean())
    get_method(name).prepare(here.deployed, data, context)
    files = [inside(path, folder) for path in find(folder, "*", deep=True) if path.suffix in KEPT]
    logger.info(f"{PREPARED.title(name)}: {budget.seconds:.0f} s, {folder}")
    return StageOutput(
        files=[name for name in files if name not in (MANIFEST, BEGUN)],
        facts=asdict(budget.cost()) | {"images_seen": budget.images_seen},
    )


def discard_stale(run: Run, config: Config, name: str, here: Surroundings) -> None:
    """Delete the preparation of a method if it was made or started with other settings or inputs."""
    folder, terms = run.prepared(name), _terms(config, name, here)
    try:
        if check_done(folder, stage=PREPARED.title(name), **terms) is None and folder.exists():
            begin(folder, **terms)
    except (StageError, DataError):
        discard(folder)


def _terms(config: Config, name: str, here: Surroundings) -> dict[str, Any]:
    """`config` and `inputs` of the preparation's manifest."""
    inputs = {"deployed": here.inputs()["deployed"]} | here.clean_inputs()
    return {"config": preparation_settings(config, name), "inputs": inputs}


def _no_failures(here: Surroundings) -> Failures:
    nothing = np.empty(0, np.int64)
    return Failures(
        corruption="none",
        image_ids_N=nothing,
        severities_N=nothing,
        labels_N=nothing,
        predicted_N=nothing,
        images_NHWC=np.empty((0, *here.split("train").image_shape), np.uint8),
    )

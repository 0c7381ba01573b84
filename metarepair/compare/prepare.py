"""A method in; what it makes before any target is known, once for all of them, out."""

from __future__ import annotations

from typing import Any

import numpy as np

from metarepair.compare.units import Map, Say, own_settings
from metarepair.config import Config
from metarepair.deploy import Surroundings
from metarepair.layout import Run
from metarepair.meta_test import RepairData
from metarepair.methods import Budget, MethodContext, get_method, method_settings
from tasks.errors import DataError, StageError
from tasks.manifest import MANIFEST, Manifest, begin, check_done, discard, write_manifest
from tasks.records import Failures
from tasks.storage import find, inside

KEPT = (".safetensors", ".json", ".seal")


def preparation_settings(config: Config, name: str) -> dict[str, Any]:
    """The settings that a preparation depends on."""
    names, own = get_method(name).prepared_by, own_settings(config, name)
    values = config.model_dump(mode="json", include={"seed", "model"})
    return values | {"settings": own if names is None else {k: own[k] for k in names}}


def prepare_method(
    run: Run, config: Config, name: str, here: Surroundings, say: Say, *, map_pieces: Map
) -> Manifest | None:
    """Prepares the method `name`. Skipped when done, or when it prepares nothing; goes on with what is there."""
    method = get_method(name)
    if not method.prepares:
        return None
    folder, stage = run.prepared(name), f"prepare {name}"
    settings, inputs = preparation_settings(config, name), _inputs(here)
    done = check_done(folder, stage=stage, config=settings, inputs=inputs)
    if done is not None:
        say(f"{stage}: done before, see {folder}")
        return done
    begin(folder, config=settings, inputs=inputs)
    budget = Budget()
    context = MethodContext(
        config=config,
        seed=config.seed,
        settings=method_settings(name, config.methods.get(name, {})),
        budget=budget,
        map=map_pieces,
        device=config.device,
        prepared=folder,
        say=say,
    )
    none = _no_failures(here)
    data = RepairData(target="none", learn=none, validation=none, clean=here.clean())
    method.prepare(here.deployed, data, context)
    files = [inside(path, folder) for path in find(folder, "*", deep=True) if path.suffix in KEPT]
    say(f"{stage}: {budget.seconds:.0f} s, {folder}")
    return write_manifest(
        folder,
        stage=stage,
        config=settings,
        inputs=inputs,
        files=[str(name) for name in files if str(name) not in (MANIFEST, "begun.json")],
        facts={"seconds": budget.seconds, "images_seen": budget.images_seen},
    )


def discard_stale(run: Run, config: Config, name: str, here: Surroundings) -> None:
    """Deletes the preparation of a method that was made, or begun, with other settings or inputs."""
    folder, settings, inputs = run.prepared(name), preparation_settings(config, name), _inputs(here)
    try:
        done = check_done(folder, stage=f"prepare {name}", config=settings, inputs=inputs)
        if done is None and folder.exists():
            begin(folder, config=settings, inputs=inputs)
    except (StageError, DataError):
        discard(folder)


def _inputs(here: Surroundings) -> dict[str, str]:
    return {key: here.inputs()[key] for key in ("deployed", "train")}


def _no_failures(here: Surroundings) -> Failures:
    nothing = np.empty(0, np.int64)
    return Failures(
        corruption="none",
        image_ids_N=nothing,
        severities_N=nothing,
        labels_N=nothing,
        predicted_N=nothing,
        images_NHWC_u8=np.empty((0, *here.split("train").image_shape), np.uint8),
    )

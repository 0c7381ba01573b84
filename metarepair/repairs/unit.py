"""A method, a seed and a target's D_collect in; the repaired DNN on storage, and what its repair took, out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from metarepair.adaptation.accuracy import accuracy_on
from metarepair.adaptation.meta_test import Start
from metarepair.adaptation.repair_data import RepairData, split_collected
from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings
from metarepair.evaluation.evaluate import Candidate
from metarepair.meta_training.theta_meta import load_start
from metarepair.methods import (
    Budget,
    Limit,
    MethodContext,
    RepairedModel,
    get_method,
    repair_fairly,
    settings_of,
)
from metarepair.models.build import DeployedModel, read_tensors, save_weights
from metarepair.models.wrappers import copied
from metarepair.repairs.export import FILE_NAMES, equality_images, export_program
from metarepair.runs.layout import Run
from metarepair.runs.peak_memory import peak_memory
from tasks.errors import DataError, DivergedError, unreadable
from tasks.records import Failures
from tasks.storage.paths import Place, write_text
from tasks.storage.stages import META

WEIGHTS, ARCHITECTURE = "model.safetensors", "architecture.json"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One repair, and where it writes. `prepared` is what its method made before any target was known."""

    method: str
    seed: int
    folder: Place
    load_meta: Callable[[], Start]
    limit: Limit | None = None
    prepared: Place | None = None


def unit_data(
    config: Config, here: Surroundings, methods: Sequence[str], collect: Failures, seed: int
) -> RepairData:
    """D_collect in its two parts, with the clean training split where one of the methods uses it."""
    data = split_collected(collect, config, seed)
    if not any("clean" in get_method(name).uses_with(config) for name in methods):
        return data
    return replace(data, clean=here.clean())


def load_meta(run: Run, config: Config, target: str, here: Surroundings) -> Start:
    """θ_meta of a target. Raises StageError where it is not trained."""
    return load_start(run.meta(target), here.deployed.module, config, remedy=META.remedy)


def repair_once(
    unit: Unit, config: Config, data: RepairData, here: Surroundings, say: Callable[[str], None]
) -> Candidate:
    """Repairs, and writes weights, architecture where it is another, and exports. Raises DivergedError."""
    method, target = get_method(unit.method), data.target  # not `data` in what it says: that has all labels
    context = MethodContext(
        config=config,
        seed=unit.seed,
        load_meta=unit.load_meta,
        settings=settings_of(config, unit.method),
        budget=Budget(unit.limit),
        folder=unit.folder,
        prepared=unit.prepared,
        say=lambda line: say(f"{target}: {line}"),
    )
    with peak_memory(here.deployed.device) as memory:
        model = repair_fairly(method, here.deployed, data, context)
    seconds = context.budget.seconds
    bad = model.first_not_finite()
    if bad is not None:
        raise DivergedError(
            f"{data.target}: the repair by {unit.method} (seed {unit.seed}) diverged, {bad} is not finite. "
            f"Lower the rates (repair.rates, or those in methods.{unit.method}); nothing was written for this repair."
        )
    _write(unit, config, data.target, model, here, say)
    judged = model.architecture_of(here.deployed)
    validation = accuracy_on(judged, model.parameters, model.buffers, data.validation)
    return Candidate(
        model=model, seed=unit.seed, seconds=seconds, validation=validation, memory_bytes=memory.bytes
    )


def _write(
    unit: Unit,
    config: Config,
    target: str,
    model: RepairedModel,
    here: Surroundings,
    say: Callable[[str], None],
) -> None:
    module = model.fill(here.deployed.module)
    if model.architecture is not None:
        write_text(unit.folder / ARCHITECTURE, json.dumps(dict(model.architecture), indent=1) + "\n")
    notes = {"model": config.model.name, "method": unit.method, "target": target, "seed": unit.seed}
    save_weights(unit.folder / WEIGHTS, module.state_dict(), notes)
    for kind in config.repair.export or ():
        images = equality_images(here.split("test"))
        exported = export_program(replace(here.deployed, module=module), images, kind, unit.folder)
        say(f"{target}: {exported.words}")


def files_of(unit_folder: Place, config: Config) -> list[str]:
    """Names of the files that `repair_once` wrote."""
    programs = [FILE_NAMES[kind] for kind in config.repair.export or ()]
    architecture = [ARCHITECTURE] if (unit_folder / ARCHITECTURE).is_file() else []
    return [WEIGHTS, *architecture, *programs]


def load_repaired(folder: Place, method: str, deployed: DeployedModel) -> nn.Module:
    """The repaired DNN of a unit's folder, in evaluation mode on the deployed one's device. Raises DataError."""
    module = repaired_architecture(folder, method, deployed.module)
    try:
        module.load_state_dict(read_tensors(folder / WEIGHTS))
    except RuntimeError as error:
        raise DataError(f"{folder / WEIGHTS} does not fit {deployed.name}: {error}") from error
    return module.to(deployed.device).eval()


@torch.no_grad()
def repaired_architecture(folder: Place, method: str, module: nn.Module) -> nn.Module:
    """A DNN of the architecture of a unit's folder: the deployed one's, or what architecture.json says."""
    path = folder / ARCHITECTURE
    if not path.is_file():
        return copied(module)
    try:
        architecture: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return get_method(method).rebuild(module, architecture)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{unreadable(path, error)}. Repair again with --restart.") from error

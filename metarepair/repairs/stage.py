"""Repair a target with every method and seed, save the repaired DNNs, then evaluate them.

A method gets a copy of the deployed DNN and the data that it declares in `uses`, and nothing else. Only the evaluator
opens D_fail, after all repairs are saved.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from metarepair.adaptation.accuracy import accuracy_on
from metarepair.adaptation.meta_test import Start
from metarepair.adaptation.repair_data import RepairData, cut_to_uses, split_collected
from metarepair.config.run import Config
from metarepair.data.selecting_images import SelectingImages, selecting_images
from metarepair.data.workspace import Surroundings
from metarepair.evaluation.evaluate import Candidate, evaluate
from metarepair.meta_training.theta_meta import load_start, read_start
from metarepair.methods import Budget, Limit, Method, MethodContext, RepairedModel, get_method, settings_of
from metarepair.methods.base import no_experiences, no_joint, no_merged
from metarepair.models.build import DeployedModel, save_weights
from metarepair.models.wrappers import copied
from metarepair.repairs.export import FILE_NAMES, equality_images, export_program
from metarepair.repairs.limits import Selection, take_inside
from metarepair.repairs.merged import load_merged, merged_inputs
from metarepair.repairs.result import FILES, write_result
from metarepair.repairs.saved import ARCHITECTURE, WEIGHTS
from metarepair.runs.layout import Run
from metarepair.runs.peak_memory import peak_memory
from metarepair.runs.run_stage import StageOutput, run_stage
from tasks.corruptions.plugins import plugin_settings
from tasks.errors import ConfigError, DataError, DivergedError
from tasks.experiences.store import open_side
from tasks.records import Failures
from tasks.storage.manifest import Manifest, require_manifest
from tasks.storage.paths import Place, write_text
from tasks.storage.settings import Settings
from tasks.storage.stages import JOINT, META, REPAIRED, TARGET

logger = logging.getLogger(__name__)
ONE_VALUE = "Expected more than 1 value per channel when training"  # torch.nn.functional.batch_norm


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One repair, and the folder that it writes to.

    `prepared` is the folder of what its method made before any target was known; None if it makes nothing.
    """

    method: str
    seed: int
    folder: Place
    load_meta: Callable[[], Start]
    load_joint: Callable[[], Start] = no_joint
    load_merged: Callable[[], Start] = no_merged
    limit: Limit | None = None
    prepared: Place | None = None


def repair_settings(config: Config) -> Settings:
    """Return the settings that a target's repairs and their reported numbers depend on."""
    values = config.settings(include={"seed", "model", "task", "inner", "repair", "evaluate", "limits"})
    values["severities"] = list(config.mining.severities)
    own = {name: config.methods[name] for name in config.repair.methods if config.methods.get(name)}
    return (
        values
        | ({"methods": own} if own else {})
        | plugin_settings(config.corruptions_of(config.evaluate.others or ()))
    )


def repair_target(run: Run, config: Config, target: str, here: Surroundings) -> Manifest:
    """Run the stage for one target. It is skipped if it is complete with the same settings and inputs."""
    folder = run.repaired(target)
    mined = require_manifest(run.target(target), TARGET.remedy)
    inputs = {"target": mined.digest, **here.inputs()}
    for other in config.evaluate.others or ():
        inputs |= here.inputs_of(other)
    used = {what for name in config.repair.methods for what in get_method(name).uses}
    if "experiences" in used:
        inputs["meta"] = require_manifest(run.meta(config.training_for(target)), META.remedy).digest
    if "joint" in used:
        inputs["joint"] = require_manifest(run.joint, JOINT.remedy).digest
    if "merged" in used:
        inputs |= merged_inputs(run, config, target)
    make = partial(_repair, run, config, target, here, mined)
    return run_stage(REPAIRED, folder, make, names=[target], config=repair_settings(config), inputs=inputs)


def _repair(run: Run, config: Config, target: str, here: Surroundings, mined: Manifest) -> StageOutput:
    """Make all repairs of a target, then evaluate them."""
    folder = run.repaired(target)
    collect = open_side(run.target(target), "collect", mined, here.environment("test", target))
    candidates, files = [], [*FILES]
    methods = config.repair.methods
    parts = {seed: unit_data(config, here, methods, collect, seed) for seed in config.repair.seeds}
    start = partial(load_meta, run, config, target, here)
    selecting = images_to_select(config, here, target)
    for seed, data in parts.items():
        for name in methods:
            unit = Unit(
                method=name,
                seed=seed,
                folder=folder / name / str(seed),
                load_meta=start,
                load_joint=partial(load_joint, run, here),
                load_merged=partial(load_merged, run, config, target, here),
            )
            candidates.append(repair_once(unit, config, data, here, selecting))
            files += [f"{name}/{seed}/{file}" for file in files_of(unit.folder, config)]
            notes = "".join(f"; {note}" for note in candidates[-1].model.notes)
            logger.info(
                f"{target}: repaired by {name}, seed {seed}, {candidates[-1].cost.seconds:.1f} s{notes}"
            )
    judged = evaluate(run, config, target, here, candidates)
    validation = len(parts[config.repair.seeds[0]].validation)
    write_result(run, config, target, mined, judged, validation=validation, deployed=here.deployed)
    return StageOutput(files=files)


def unit_data(
    config: Config, here: Surroundings, methods: Sequence[str], collect: Failures, seed: int
) -> RepairData:
    """Return D_collect in its two parts, with the clean training split if one of the methods uses it."""
    data = split_collected(collect, config, seed, here.environment("test", collect.corruption))
    if not any("clean" in get_method(name).uses_with(config) for name in methods):
        return data
    return replace(data, clean=here.clean())


def load_meta(run: Run, config: Config, target: str, here: Surroundings) -> Start:
    """Load θ_meta of a target. Raises StageError if it is not trained."""
    return load_start(run.meta(config.training_for(target)), here.deployed.module, config, remedy=META.remedy)


def load_joint(run: Run, here: Surroundings) -> Start:
    """Load the jointly trained weights. Raises StageError if joint training is not done."""
    return read_start(run.joint, here.deployed.module, remedy=JOINT.remedy)


def images_to_select(config: Config, here: Surroundings, target: str) -> SelectingImages | None:
    """The images by which a repair is chosen inside limits; None without limits."""
    return selecting_images(config, here, target) if config.limits.active else None


def repair_once(
    unit: Unit,
    config: Config,
    data: RepairData,
    here: Surroundings,
    selecting: SelectingImages | None = None,
) -> Candidate:
    """Repair the deployed DNN, take the best point inside the limits, if there are any, and save the result.

    selecting: the images that choose inside the limits. Raises DivergedError if the repaired weights are not finite.
    """
    method, target = get_method(unit.method), data.target  # `say` must not hold `data`, which has all labels
    context = MethodContext(
        config=config,
        seed=unit.seed,
        load_meta=unit.load_meta,
        load_joint=unit.load_joint,
        load_merged=unit.load_merged,
        settings=settings_of(config, unit.method),
        budget=Budget(unit.limit),
        folder=unit.folder,
        prepared=unit.prepared,
        say=lambda line: logger.info(f"{target}: {line}"),
    )
    with peak_memory(here.deployed.device) as memory:
        model = repair_fairly(method, here.deployed, data, context)
    refuse_not_finite(model, target, unit.seed)
    selection: Selection | None = None
    if selecting is not None:
        model, selection = _taken(here.deployed, model, selecting, context)
    cost = context.budget.cost()
    _save(unit, config, target, model, here)
    judged = model.architecture_of(here.deployed)
    validation = accuracy_on(judged, model.parameters, model.buffers, data.validation)
    return Candidate(
        model=model,
        seed=unit.seed,
        cost=cost,
        validation=validation,
        memory_bytes=memory.bytes,
        selection=None if selection is None else selection.as_json(),
    )


def _taken(
    deployed: DeployedModel, model: RepairedModel, selecting: SelectingImages, context: MethodContext
) -> tuple[RepairedModel, Selection]:
    """`take_inside`, with its passes counted as the repair's."""
    handle = context.budget.passes.watch(deployed.module)
    try:
        return take_inside(deployed, model, selecting, context.config.limits)
    finally:
        handle.remove()


def refuse_not_finite(model: RepairedModel, target: str, seed: int) -> None:
    """Raise DivergedError if a repaired weight is not finite."""
    bad = model.first_not_finite()
    if bad is not None:
        raise DivergedError(
            f"{target}: the repair by {model.method} (seed {seed}) diverged, {bad} is not finite. "
            f"Lower the rates (repair.rates, or those in methods.{model.method}); nothing was written for this repair."
        )


def repair_fairly(
    method: Method, deployed: DeployedModel, data: RepairData, context: MethodContext
) -> RepairedModel:
    """Call a method with a copy of the deployed DNN and only the data that it declares in `uses`.

    The objects that the method gets do not hold any other data, so a mistake in its code cannot read it.
    Raises ConfigError if the method needs clean images and none are given, or if it breaks its contract; DataError if
    a batch norm cannot compute a variance, because it got a batch of one image.
    """
    uses = method.uses_with(context.config)
    if "clean" in uses and not data.clean:
        raise ConfigError(
            f"{method.name} learns from the clean training split with these settings, and none is given. Give one (a "
            "run's data, clean_training of a call), or set task.clean_support and repair.clean_weight to 0 and use a "
            "method that needs none (finetune, bn_adapt)."
        )
    context = replace(
        context,
        load_meta=_loaded(context.load_meta) if "experiences" in uses else no_experiences,
        load_joint=_loaded(context.load_joint) if "joint" in uses else no_joint,
        load_merged=_loaded(context.load_merged) if "merged" in uses else no_merged,
    )
    own = replace(deployed, module=copied(deployed.module).eval())
    passes = context.budget.passes
    passes.watch(own.module)
    try:
        repaired: object = method.repair(own, cut_to_uses(data, uses), context)
    except ValueError as error:
        if ONE_VALUE not in str(error):
            raise
        raise DataError(
            f"{method.name} used a batch of one image, in which a batch norm of {deployed.name} sees one value per "
            f"channel ({error}); one value has no variance. There are {len(data.learn)} examples to learn from. "
            f"Collect more failures, or use batches of two or more images (methods.{method.name}.batch_size, "
            "task.shots)."
        ) from error
    if not isinstance(repaired, RepairedModel):
        raise ConfigError(
            f"the method {method.name} returned a {type(repaired).__name__}; `repair` returns a RepairedModel "
            "(metarepair.methods.repaired_from makes one)."
        )
    _check_frozen(deployed.module, repaired)
    if repaired.module is not None:
        passes.leave(repaired.module)
    return repaired


def _loaded(load: Callable[[], Start]) -> Callable[[], Start]:
    """Load weights now: the method must not get the loader, which can reach the data set and so the test split."""
    start = load()
    return lambda: start


def _check_frozen(module: nn.Module, repaired: RepairedModel) -> None:
    """Raise ConfigError if a parameter with requires_grad=False changed. A new architecture may rename parameters."""
    for name, own in module.named_parameters():
        changed = repaired.parameters.get(name)
        if not own.requires_grad and changed is not None and not torch.equal(changed.to(own), own):
            raise ConfigError(
                f"the method {repaired.method} changed {name}, which has requires_grad=False in the deployed DNN. A "
                "method leaves such parameters as they are; set requires_grad_(True) on those that it may change."
            )


def _save(
    unit: Unit,
    config: Config,
    target: str,
    model: RepairedModel,
    here: Surroundings,
) -> None:
    """Write the repaired weights, the architecture if it changed, and the exports that `repair.export` names."""
    module = model.fill(here.deployed.module)
    if model.architecture is not None:
        write_text(unit.folder / ARCHITECTURE, json.dumps(dict(model.architecture), indent=1) + "\n")
    notes = {"model": config.model.name, "method": unit.method, "target": target, "seed": unit.seed}
    save_weights(unit.folder / WEIGHTS, module.state_dict(), notes)
    for kind in config.repair.export or ():
        test = here.split("test")
        exported = export_program(
            replace(here.deployed, module=module),
            equality_images(test),
            kind,
            unit.folder,
            class_names=test.classes,
        )
        logger.info(f"{target}: {exported.words}")


def files_of(unit_folder: Place, config: Config) -> list[str]:
    """Return the names of the files that `repair_once` wrote."""
    programs = [FILE_NAMES[kind] for kind in config.repair.export or ()]
    architecture = [ARCHITECTURE] if (unit_folder / ARCHITECTURE).is_file() else []
    return [WEIGHTS, *architecture, *programs]

"""Repair for one target by one method with one seed, as a stage with its own manifest."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from metarepair.adaptation.meta_test import Step
from metarepair.adaptation.repair_data import RepairData
from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings
from metarepair.evaluation.evaluate import Candidate
from metarepair.methods import (
    Limit,
    Method,
    MethodContext,
    RepairedModel,
    get_method,
    parse_limit,
    settings_of,
)
from metarepair.methods.budget import cost_of
from metarepair.repairs.merged import load_merged, merged_inputs
from metarepair.repairs.saved import ARCHITECTURE, load_repaired
from metarepair.repairs.stage import (
    Unit,
    files_of,
    images_to_select,
    load_joint,
    load_meta,
    repair_once,
    unit_data,
)
from metarepair.runs.layout import Run
from metarepair.runs.run_stage import StageOutput, run_stage
from tasks.experiences.store import open_side
from tasks.storage.manifest import (
    Manifest,
    check_done,
    require_manifest,
    verify_checksums,
)
from tasks.storage.settings import Settings
from tasks.storage.stages import COMPARED, JOINT, META, TARGET

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ComparedRepair:
    """One repair of the comparison."""

    target: str
    method: str
    seed: int

    @property
    def words(self) -> str:
        return f"{self.target}: {self.method}, seed {self.seed}"

    @property
    def names(self) -> list[str]:
        """The names in the title of its stage."""
        return [self.target, self.method, str(self.seed)]


def compared_units(config: Config) -> list[ComparedRepair]:
    """All repairs. Seeds are the outermost loop, so a comparison that is cut short has complete seeds."""
    return [
        ComparedRepair(target=target, method=method, seed=seed)
        for seed in config.compare.seeds
        for target in config.targets
        for method in config.compare.methods
    ]


def limit_of(config: Config, method: str) -> Limit | None:
    """The budget of a method's repairs: its own, otherwise the one for all methods, otherwise None."""
    text = config.compare.budgets.get(method, config.compare.budget)
    return None if text is None else parse_limit(text)


def unit_settings(config: Config, method: Method) -> Settings:
    """The settings that a repair by `method` depends on."""
    values = config.settings(include={"seed", "model"})
    values["validation_fraction"] = config.repair.validation_fraction
    values["settings"] = settings_of(config, method.name).settings()
    limit = limit_of(config, method.name)
    values["budget"] = None if limit is None else str(limit)
    if config.limits.active:
        values["limits"] = config.limits.settings()
    if method.walks:
        values |= {"task": config.task.settings(), "inner": config.inner.settings()}
        others = {"methods", "seeds", "export", "validation_fraction"}
        values["repair"] = config.repair.settings(exclude=others)
    return values


def unit_inputs(run: Run, config: Config, unit: ComparedRepair, here: Surroundings) -> dict[str, str]:
    """Digests of everything that the repair starts from. Raises StageError if any of it is unfinished."""
    method = get_method(unit.method)
    inputs = {"target": require_manifest(run.target(unit.target), TARGET.remedy).digest}
    inputs["deployed"] = here.inputs()["deployed"]
    if "clean" in method.uses_with(config):
        inputs |= here.clean_inputs()
    if "experiences" in method.uses:
        inputs["meta"] = require_manifest(run.meta(config.training_for(unit.target)), META.remedy).digest
    if "joint" in method.uses:
        inputs["joint"] = require_manifest(run.joint, JOINT.remedy).digest
    if "merged" in method.uses:
        inputs |= merged_inputs(run, config, unit.target)
    if method.prepares:
        inputs["prepared"] = require_manifest(run.prepared(unit.method), COMPARED.remedy).digest
    return inputs


def _terms(run: Run, config: Config, unit: ComparedRepair, here: Surroundings) -> dict[str, Any]:
    """`config` and `inputs` of the repair's manifest."""
    settings = unit_settings(config, get_method(unit.method))
    return {"config": settings, "inputs": unit_inputs(run, config, unit, here)}


def done_unit(run: Run, config: Config, unit: ComparedRepair, here: Surroundings) -> Manifest | None:
    """The manifest of a repair that is complete with these settings and inputs, or None if it is unfinished.

    Raises StageError if the repair is complete with others.
    """
    folder = run.compared(unit.target, unit.method, unit.seed)
    return check_done(folder, stage=COMPARED.title(*unit.names), **_terms(run, config, unit, here))


def repair_compared(run: Run, config: Config, unit: ComparedRepair, here: Surroundings) -> Manifest:
    """Run one repair. Skipped if complete; resumed if its method keeps checkpoints."""
    folder = run.compared(unit.target, unit.method, unit.seed)
    make = partial(_repair, run, config, unit, here)
    terms = _terms(run, config, unit, here)
    return run_stage(COMPARED, folder, make, names=unit.names, **terms)


def _repair(run: Run, config: Config, unit: ComparedRepair, here: Surroundings) -> StageOutput:
    folder = run.compared(unit.target, unit.method, unit.seed)
    data = data_of(run, config, unit, here)
    one = Unit(
        method=unit.method,
        seed=unit.seed,
        folder=folder,
        load_meta=partial(load_meta, run, config, unit.target, here),
        load_joint=partial(load_joint, run, here),
        load_merged=partial(load_merged, run, config, unit.target, here),
        limit=limit_of(config, unit.method),
        prepared=run.prepared(unit.method) if get_method(unit.method).prepares else None,
    )
    repaired = repair_once(one, config, data, here, images_to_select(config, here, unit.target))
    notes = "".join(f"; {note}" for note in repaired.model.notes)
    logger.info(
        f"{unit.words}: repaired in {repaired.cost.seconds:.1f} s, validation {repaired.validation:.1%}{notes}"
    )
    return StageOutput(
        files=files_of(folder, config),
        facts=asdict(repaired.cost)
        | {
            "validation": repaired.validation,
            "memory_bytes": repaired.memory_bytes,
            "images_seen": repaired.model.images_seen,
            "gradient_steps": repaired.model.gradient_steps,
            "notes": list(repaired.model.notes),
            "rate": repaired.model.rate,
            "episode": repaired.model.episode,
            **({} if repaired.selection is None else {"selection": dict(repaired.selection)}),
        },
    )


def load_candidate(run: Run, config: Config, unit: ComparedRepair, here: Surroundings) -> Candidate:
    """Load a saved repaired DNN for judging. Raises StageError if it is unfinished, DataError if it is damaged."""
    folder = run.compared(unit.target, unit.method, unit.seed)
    manifest = require_manifest(folder, COMPARED.remedy)
    verify_checksums(folder, manifest)
    module = load_repaired(folder, unit.method, here.deployed)
    facts = manifest.facts
    rate = facts["rate"]

    def steps() -> Iterator[Step]:
        context = MethodContext(
            config=config,
            seed=unit.seed,
            load_meta=partial(load_meta, run, config, unit.target, here),
            load_joint=partial(load_joint, run, here),
            load_merged=partial(load_merged, run, config, unit.target, here),
        )
        data = data_of(run, config, unit, here)
        return get_method(unit.method).steps(here.deployed, data, context, rate=rate)

    model = RepairedModel(
        method=unit.method,
        parameters={k: v.detach() for k, v in module.named_parameters()},
        buffers={k: v.detach() for k, v in module.named_buffers()},
        images_seen=facts["images_seen"],
        gradient_steps=facts["gradient_steps"],
        notes=tuple(facts["notes"]),
        rate=rate,
        episode=facts["episode"],
        steps=None if rate is None else steps,
        module=module if (folder / ARCHITECTURE).is_file() else None,
    )
    return Candidate(
        model=model,
        seed=unit.seed,
        cost=cost_of(facts),
        validation=facts["validation"],
        memory_bytes=facts["memory_bytes"],
        selection=facts.get("selection"),
    )


def data_of(run: Run, config: Config, unit: ComparedRepair, here: Surroundings) -> RepairData:
    """Return what a repair learns from and is chosen by. Raises StageError if its target is not mined."""
    mined = require_manifest(run.target(unit.target), TARGET.remedy)
    collect = open_side(run.target(unit.target), "collect", mined, here.environment("test", unit.target))
    return unit_data(config, here, [unit.method], collect, unit.seed)

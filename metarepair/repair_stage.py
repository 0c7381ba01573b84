"""A target with everything learned in; its repaired weights, result.json and samples.parquet out.

All methods and seeds are repaired and saved first; only then is D_fail opened, by the evaluator.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metarepair.config import Config
from metarepair.deploy import Surroundings
from metarepair.evaluate import Candidate, Judged, evaluate
from metarepair.export import EQUALITY_IMAGES, FILE_NAMES, export_program
from metarepair.features import distance_name
from metarepair.layout import Run
from metarepair.meta_test import RepairData, Start, load_start, repair_data
from metarepair.methods import MethodContext, get_method
from metarepair.models.build import save_weights
from metarepair.reports import SCHEMA_VERSION
from metarepair.score import read_confidence
from tasks.errors import DivergedError
from tasks.manifest import (
    Manifest,
    check_done,
    require_manifest,
    versions,
    write_manifest,
)
from tasks.storage import Place, local, write_text, writing
from tasks.store import open_side

Progress = Callable[[str], None]
TRAIN_FIRST = "Train it first: metarepair train --config …"


def repair_settings(config: Config) -> dict[str, Any]:
    """The settings that a repair and its figures depend on."""
    names = {"seed", "model", "task", "inner", "repair", "evaluate"}
    values = config.model_dump(mode="json", include=names)
    values["severities"] = list(config.mining.severities)
    return values


def repair_target(run: Run, config: Config, target: str, here: Surroundings, progress: Progress) -> Manifest:
    """Repairs `target` by every method and seed, then judges them. Skipped when done with the same settings."""
    folder = run.repaired(target)
    mined = require_manifest(run.target(target), "Mine it first: metarepair mine --config …")
    inputs = {"target": mined.digest, **here.inputs()}
    if "metarepair" in config.repair.methods:
        inputs["meta"] = require_manifest(run.meta(target), TRAIN_FIRST).digest
    stage = f"repair {target}"
    done = check_done(folder, stage=stage, config=repair_settings(config), inputs=inputs)
    if done is not None:
        progress(f"{stage}: done before, see {folder}")
        return done
    collect = open_side(run.target(target), "collect", mined, here.split("test"))
    candidates = []
    parts = {seed: repair_data(collect, config, seed) for seed in config.repair.seeds}
    for seed, data in parts.items():
        for name in config.repair.methods:
            candidates.append(_repair(run, config, name, data, here, seed, progress))
            notes = "".join(f"; {note}" for note in candidates[-1].model.notes)
            progress(f"{target}: repaired by {name}, seed {seed}, {candidates[-1].seconds:.1f} s{notes}")
    judged = evaluate(run, config, target, here.deployed, here.split("test"), candidates, progress=progress)
    _write_samples(folder / "samples.parquet", judged)
    result = _result(run, config, target, mined, judged, parts)
    write_text(folder / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    weights = [_weights(c.model.method, c.seed) for c in candidates]
    programs = [path.with_name(FILE_NAMES[kind]) for path in weights for kind in config.repair.export or ()]
    return write_manifest(
        folder,
        stage=stage,
        config=repair_settings(config),
        inputs=inputs,
        files=["result.json", "samples.parquet", *map(str, weights + programs)],
    )


def _weights(method: str, seed: int) -> Path:
    return Path(method) / str(seed) / "model.safetensors"


def _repair(
    run: Run, config: Config, name: str, data: RepairData, here: Surroundings, seed: int, progress: Progress
) -> Candidate:
    def load_meta() -> Start:
        return load_start(run.meta(data.target), here.deployed.module, config, remedy=TRAIN_FIRST)

    started = time.monotonic()
    context = MethodContext(config=config, seed=seed, load_meta=load_meta)
    model = get_method(name).repair(here.deployed, data, context)
    seconds = time.monotonic() - started
    bad = model.first_not_finite()
    if bad is not None:
        raise DivergedError(
            f"{data.target}: the repair by {name} (seed {seed}) diverged, {bad} is not finite. "
            "Lower the rates in repair.rates; nothing was written for this target."
        )
    path = run.repaired(data.target) / _weights(name, seed)
    module = model.fill(here.deployed.module)
    notes = {"model": config.model.name, "method": name, "target": data.target, "seed": seed}
    save_weights(path, module.state_dict(), notes)
    for kind in config.repair.export or ():
        images = here.split("test").images(np.arange(EQUALITY_IMAGES))
        exported = export_program(replace(here.deployed, module=module), images, kind, path.parent)
        progress(f"{data.target}: {exported.words}")
    return Candidate(model=model, seed=seed, seconds=seconds)


def _write_samples(path: Place, judged: Judged) -> None:
    """Every D_fail example before and after, for every method and seed, in long form."""
    fail, count = judged.fail, len(judged.fail)
    columns = {
        "method": np.repeat([r.method for r in judged.results], count),
        "seed": np.repeat([r.seed for r in judged.results], count),
        "image_id": np.tile(fail.image_ids_N, len(judged.results)),
        "severity": np.tile(fail.severities_N, len(judged.results)),
        "label": np.tile(fail.labels_N, len(judged.results)),
        "before": np.tile(fail.predicted_N, len(judged.results)),
        "after": judged.predicted_MN.reshape(-1),
    }
    with writing(path) as part:
        pq.write_table(pa.table({k: pa.array(v) for k, v in columns.items()}), part)


def _result(
    run: Run, config: Config, target: str, mined: Manifest, judged: Judged, parts: dict[int, RepairData]
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "target": target,
        "d_collect": {
            "collect": mined.rows["collect"],
            "fail": mined.rows["fail"],
            "validation": len(next(iter(parts.values())).validation),
            "classes_without_failures": mined.facts["classes_without_failures"],
        },
        "methods": [
            asdict(r) | {"weights": f"repaired/{target}/{_weights(r.method, r.seed)}"} for r in judged.results
        ],
    }
    if "metarepair" not in config.repair.methods:
        return result | {"features": "none", "distance_name": "none", "experiences": []}
    return result | _learned(run, target)


def _learned(run: Run, target: str) -> dict[str, Any]:
    """What MetaRepair learned from, and what that cost."""
    confidence = read_confidence(run, target)
    scores = pq.read_table(local(run.score / "confidence.parquet")).to_pylist()
    extractor = scores[0]["extractor"]
    trained = require_manifest(run.meta(target), TRAIN_FIRST)
    return {
        "features": extractor,
        "distance_name": distance_name(extractor),
        "experiences": [
            {"name": r["experience"], "fid": r["distance"], "p": r["probability"]}
            for r in scores
            if r["target"] == target
        ],
        "confidence": {
            "rule": confidence.rule,
            "alpha": confidence.alpha,
            "beta": confidence.beta,
            "effective_number": confidence.effective_number,
        },
        "preparation": trained.facts,
    }

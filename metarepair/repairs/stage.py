"""A target with everything learned in; its repaired weights, result.json and samples.parquet out.

All methods and seeds are repaired and saved first; only then is D_fail opened, by the evaluator.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings
from metarepair.evaluation.evaluate import Judged, evaluate
from metarepair.features.confidence_tables import SCORE_AGAIN, read_confidence
from metarepair.features.extractors import distance_name
from metarepair.repairs.unit import (
    WEIGHTS,
    Unit,
    files_of,
    load_meta,
    repair_once,
    unit_data,
)
from metarepair.reports import SCHEMA_VERSION
from metarepair.runs.layout import Run
from metarepair.runs.run_stage import Made, run_stage
from tasks.experiences.store import open_side
from tasks.storage.manifest import (
    Manifest,
    require_manifest,
    versions,
)
from tasks.storage.paths import Place, read_table, write_text, writing
from tasks.storage.stages import META, REPAIRED, TARGET

Progress = Callable[[str], None]


def repair_settings(config: Config) -> dict[str, Any]:
    """The settings that a repair and its figures depend on."""
    names = {"seed", "model", "task", "inner", "repair", "evaluate"}
    values = config.model_dump(mode="json", include=names)
    values["severities"] = list(config.mining.severities)
    own = {name: config.methods[name] for name in config.repair.methods if config.methods.get(name)}
    return values | ({"methods": own} if own else {})


def repair_target(run: Run, config: Config, target: str, here: Surroundings, progress: Progress) -> Manifest:
    """Repairs `target` by every method and seed, then judges them. Skipped when done with the same settings."""
    folder = run.repaired(target)
    mined = require_manifest(run.target(target), TARGET.remedy)
    inputs = {"target": mined.digest, **here.inputs()}
    if "metarepair" in config.repair.methods:
        inputs["meta"] = require_manifest(run.meta(target), META.remedy).digest
    make = partial(_repair, run, config, target, here, mined, progress)
    return run_stage(
        REPAIRED, folder, make, names=[target], config=repair_settings(config), inputs=inputs, say=progress
    )


def _repair(
    run: Run, config: Config, target: str, here: Surroundings, mined: Manifest, progress: Progress
) -> Made:
    """All repairs of a target first, then their evaluation."""
    folder = run.repaired(target)
    collect = open_side(run.target(target), "collect", mined, here.split("test"))
    candidates, files = [], ["result.json", "samples.parquet"]
    methods = config.repair.methods
    parts = {seed: unit_data(config, here, methods, collect, seed) for seed in config.repair.seeds}
    start = partial(load_meta, run, config, target, here)
    for seed, data in parts.items():
        for name in methods:
            place = _folder(name, seed)
            unit = Unit(method=name, seed=seed, folder=folder / place, load_meta=start)
            candidates.append(repair_once(unit, config, data, here, progress))
            files += [str(place / file) for file in files_of(unit.folder, config)]
            notes = "".join(f"; {note}" for note in candidates[-1].model.notes)
            progress(f"{target}: repaired by {name}, seed {seed}, {candidates[-1].seconds:.1f} s{notes}")
    judged = evaluate(run, config, target, here.deployed, here.split("test"), candidates, progress=progress)
    _write_samples(folder / "samples.parquet", judged)
    result = _result(run, config, target, mined, judged, parts)
    write_text(folder / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return Made(files=files)


def _folder(method: str, seed: int) -> Path:
    return Path(method) / str(seed)


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
            asdict(r) | {"weights": f"repaired/{target}/{_folder(r.method, r.seed)}/{WEIGHTS}"}
            for r in judged.results
        ],
    }
    if "metarepair" not in config.repair.methods:
        return result | {"features": "none", "distance_name": "none", "experiences": []}
    return result | _learned(run, target)


def _learned(run: Run, target: str) -> dict[str, Any]:
    """What MetaRepair learned from, and what that cost."""
    confidence = read_confidence(run, target)
    scores = read_table(run.score / "confidence.parquet", SCORE_AGAIN).to_pylist()
    extractor = scores[0]["extractor"]
    trained = require_manifest(run.meta(target), META.remedy)
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

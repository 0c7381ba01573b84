"""Write the evaluation of a target's repairs.

result.json             the rows of the table, and how they came about
samples.parquet         D_fail's examples, before and after each repair
side_effects.json       what each repair changed: classes, confusion, calibration
judged_images.parquet   every image that judged, with its predictions before and after each repair
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metarepair.config.run import Config
from metarepair.evaluation.evaluate import Judgement
from metarepair.evaluation.side_effects import (
    SIDE_EFFECTS,
    fallen_classes,
    judged_sets,
    side_effects_of,
    write_side_effects,
)
from metarepair.features.confidence_tables import SCORE_AGAIN, read_confidence
from metarepair.features.extractors import distance_name
from metarepair.methods import get_method
from metarepair.models.build import DeployedModel
from metarepair.repairs.costs import preparation_cost
from metarepair.repairs.limits import choice_of
from metarepair.repairs.saved import WEIGHTS
from metarepair.reports import SCHEMA_VERSION
from metarepair.runs.layout import Run
from tasks.storage.manifest import Manifest, require_manifest, versions
from tasks.storage.paths import Place, read_table, write_table, write_text, writing
from tasks.storage.stages import META

RESULT, SAMPLES = "result.json", "samples.parquet"
JUDGED_IMAGES = "judged_images.parquet"
FILES = (RESULT, SAMPLES, SIDE_EFFECTS, JUDGED_IMAGES)


def write_result(
    run: Run,
    config: Config,
    target: str,
    mined: Manifest,
    judged: Judgement,
    *,
    validation: int,
    deployed: DeployedModel,
) -> None:
    """Write all files into the target's folder; `validation` is the size of D_collect's validation part."""
    folder = run.repaired(target)
    _write_samples(folder / SAMPLES, judged)
    write_table(folder / JUDGED_IMAGES, _judged_images(judged))
    sets = judged_sets(judged.seen)
    effects = {
        f"{one.method}/{one.seed}": side_effects_of(sets, number, judged.class_names)
        for number, one in enumerate(judged.results)
    }
    write_side_effects(folder, judged.class_names, effects)
    result = _result(run, config, target, mined, judged, validation)
    result["preprocessing"] = deployed.preprocessing
    for row, found in zip(result["methods"], effects.values(), strict=True):
        row["fallen_classes"] = fallen_classes(found)
    write_text(folder / RESULT, json.dumps(result, indent=1, allow_nan=False) + "\n")


def collected_counts(mined: Manifest, validation: int) -> dict[str, Any]:
    """Return the numbers of a mined target's failures, `validation` of D_collect among them."""
    return {
        "collect": mined.rows["collect"],
        "fail": mined.rows["fail"],
        "validation": validation,
        "classes_without_failures": mined.facts["classes_without_failures"],
    }


def _write_samples(path: Place, judged: Judgement) -> None:
    """Write the class of every D_fail example before and after each repair, one row per example and repair."""
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


def _judged_images(judged: Judgement) -> pa.Table:
    """One row per image, clean ones first; a column for the class that each repair predicts, one for its confidence."""
    columns: dict[str, Any] = {
        "environment": np.concatenate([np.repeat(one.name, len(one.labels_N)) for one in judged.seen]),
        "image_id": np.concatenate([one.image_ids_N for one in judged.seen]),
        "severity": np.concatenate([one.severities_N for one in judged.seen]),
        "kind": np.concatenate([one.kinds_N for one in judged.seen]),
        "file": [file for one in judged.seen for file in one.files or [None] * len(one.labels_N)],
        "label": np.concatenate([one.labels_N for one in judged.seen]),
    }
    names = ["before", *(f"{one.method}/{one.seed}" for one in judged.results)]
    for number, name in enumerate(names):
        columns[name] = np.concatenate([one.classes[number] for one in judged.seen])
        columns[f"{name} confidence"] = np.concatenate([one.confidence[number] for one in judged.seen])
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def _result(
    run: Run, config: Config, target: str, mined: Manifest, judged: Judgement, validation: int
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "target": target,
        "judging": asdict(judged.judging),
        "d_collect": collected_counts(mined, validation),
        "preparations": {
            name: cost.as_json()
            for name in config.repair.methods
            if (cost := preparation_cost([run], config, name, [target])) is not None
        },
        "methods": [
            r.as_json() | {"weights": f"repaired/{target}/{r.method}/{r.seed}/{WEIGHTS}"}
            for r in judged.results
        ],
    }
    if config.limits.active:
        result["choice"] = choice_of(result["methods"])
    if not any("experiences" in get_method(name).uses for name in config.repair.methods):
        return result | {"features": "none", "distance_name": "none", "experiences": []}
    return result | _learned(run, config, target)


def _learned(run: Run, config: Config, target: str) -> dict[str, Any]:
    """Return the experiences that θ_meta was learned from, and what meta-training cost."""
    confidence = read_confidence(run, target)
    scores = read_table(run.score / "confidence.parquet", SCORE_AGAIN).to_pylist()
    extractor = scores[0]["extractor"]
    trained = require_manifest(run.meta(config.training_for(target)), META.remedy)
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

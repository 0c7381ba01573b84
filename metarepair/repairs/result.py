"""Write the evaluation of a target's repairs: result.json and samples.parquet."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metarepair.config.run import Config
from metarepair.evaluation.evaluate import Judgement
from metarepair.features.confidence_tables import SCORE_AGAIN, read_confidence
from metarepair.features.extractors import distance_name
from metarepair.repairs.costs import preparation_cost
from metarepair.repairs.limits import choice_of
from metarepair.repairs.saved import WEIGHTS
from metarepair.reports import SCHEMA_VERSION
from metarepair.runs.layout import Run
from tasks.storage.manifest import Manifest, require_manifest, versions
from tasks.storage.paths import Place, read_table, write_text, writing
from tasks.storage.stages import META

RESULT, SAMPLES = "result.json", "samples.parquet"


def write_result(
    run: Run, config: Config, target: str, mined: Manifest, judged: Judgement, *, validation: int
) -> None:
    """Write both files into the target's folder; `validation` is the size of D_collect's validation part."""
    folder = run.repaired(target)
    _write_samples(folder / SAMPLES, judged)
    result = _result(run, config, target, mined, judged, validation)
    write_text(folder / RESULT, json.dumps(result, indent=1, allow_nan=False) + "\n")


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


def _result(
    run: Run, config: Config, target: str, mined: Manifest, judged: Judgement, validation: int
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "target": target,
        "judging": asdict(judged.judging),
        "d_collect": {
            "collect": mined.rows["collect"],
            "fail": mined.rows["fail"],
            "validation": validation,
            "classes_without_failures": mined.facts["classes_without_failures"],
        },
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
    if "metarepair" not in config.repair.methods:
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

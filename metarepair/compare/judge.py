"""Judge the repaired DNNs of a target, and write judged.json, samples.parquet, side_effects.json and
a model card beside each.

No other module of a comparison opens D_fail. A repaired DNN is judged only once, so a method that is added later is
judged alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from metarepair.compare.plan import judged_by
from metarepair.compare.units import ComparedRepair, data_of, load_candidate
from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings
from metarepair.evaluation.evaluate import Judgement, evaluate
from metarepair.evaluation.side_effects import (
    fallen_classes,
    judged_sets,
    side_effects_of,
    write_side_effects,
)
from metarepair.repairs.result import collected_counts
from metarepair.repairs.saved import WEIGHTS
from metarepair.reports.card import Card, card_of, write_card
from metarepair.reports.outcome import knows_only_failures
from metarepair.reports.table import Row
from metarepair.runs.layout import Run
from tasks.errors import DataError, StageError, unreadable
from tasks.storage.manifest import require_manifest, versions
from tasks.storage.names import remove_listed
from tasks.storage.paths import read_json, write_table, write_text
from tasks.storage.sealed_parts import is_sealed, seal, seal_of
from tasks.storage.stages import COMPARED, TARGET

# M repaired DNNs, N examples

AT_ONCE_BYTES = 2 * 2**30  # of weights judged at once; each image is corrupted once for all of these DNNs
ROW, SAMPLES = "judged.json", "samples.parquet"


def judging_identity(run: Run, config: Config, unit: ComparedRepair, here: Surroundings) -> dict[str, Any]:
    """The settings and the digest of the repair that a judgement depends on."""
    manifest = require_manifest(run.compared(unit.target, unit.method, unit.seed), COMPARED.remedy)
    evaluated = config.evaluate.model_dump(mode="json")
    return judged_by(manifest.digest, evaluated, config.mining.severities, other_images(config, here))


def other_images(config: Config, here: Surroundings) -> dict[str, str]:
    """The digests of the user's environments and archives in `evaluate.others`."""
    found: dict[str, str] = {}
    for name in config.evaluate.others or ():
        found |= here.inputs_of(name)
    return found


def is_judged(run: Run, config: Config, unit: ComparedRepair, here: Surroundings) -> bool:
    """Whether both files are complete and belong to exactly this repair."""
    folder = run.compared(unit.target, unit.method, unit.seed)
    identity = judging_identity(run, config, unit, here)
    return all(is_sealed(folder / name, identity | {"file": name}) for name in (ROW, SAMPLES))


def judge(run: Run, config: Config, units: Sequence[ComparedRepair], here: Surroundings) -> None:
    """Judge those of a target's repairs that are not judged yet, as many at once as AT_ONCE_BYTES allows."""
    waiting = [unit for unit in units if not is_judged(run, config, unit, here)]
    for some in _portions(waiting, here):
        candidates = [load_candidate(run, config, unit, here) for unit in some]
        judged = evaluate(run, config, some[0].target, here, candidates)
        sets = judged_sets(judged.seen)
        for number, unit in enumerate(some):
            folder = run.compared(unit.target, unit.method, unit.seed)
            identity = judging_identity(run, config, unit, here)
            for name in (
                SAMPLES,
                ROW,
            ):  # an earlier judgement's seal would make the new file count as damaged
                remove_listed(folder, seal_of(folder / name).name)
            effects = side_effects_of(sets, number, judged.class_names)
            write_side_effects(folder, judged.class_names, {f"{unit.method}/{unit.seed}": effects})
            write_table(folder / SAMPLES, _samples(judged, number))
            row = judged.results[number].as_json() | {"judging": asdict(judged.judging)}
            row["fallen_classes"] = fallen_classes(effects)
            if unit.method != "none":
                card = _card(run, config, unit, here, row, judged.class_names, effects)
                write_card(card, folder / WEIGHTS)
            write_text(folder / ROW, json.dumps(row, indent=1, allow_nan=False) + "\n")
            for name in (SAMPLES, ROW):
                seal(folder / name, identity | {"file": name})


def _card(
    run: Run,
    config: Config,
    unit: ComparedRepair,
    here: Surroundings,
    row: Row,
    class_names: Sequence[str],
    effects: Mapping[str, Any],
) -> Card:
    """The model card of a judged repair, without its weights file."""
    mined = require_manifest(run.target(unit.target), TARGET.remedy)
    result = {
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "judging": row["judging"],
        "preprocessing": here.deployed.preprocessing,
        "d_collect": collected_counts(mined, len(data_of(run, config, unit, here).validation)),
        "methods": [row],
    }
    made_of = require_manifest(run.compared(unit.target, unit.method, unit.seed), COMPARED.remedy).inputs
    told = {"class_names": class_names, "repairs": {f"{unit.method}/{unit.seed}": effects}}
    return card_of(result, row, told, made_of, only_failures=knows_only_failures(result))


def _portions(units: Sequence[ComparedRepair], here: Surroundings) -> Iterator[Sequence[ComparedRepair]]:
    tensors = (*here.deployed.module.parameters(), *here.deployed.module.buffers())
    size = sum(t.numel() * t.element_size() for t in tensors)
    count = max(1, AT_ONCE_BYTES // size)
    for start in range(0, len(units), count):
        yield units[start : start + count]


def _samples(judged: Judgement, number: int) -> pa.Table:
    """Every D_fail example and every clean test image before and after a repair, in long form.

    A clean image's id is its row in the test split, and its severity is 0.
    """
    fail, clean = judged.fail, judged.clean_before_N
    rows = judged.clean_rows_N
    return pa.table(
        {
            "part": ["fail"] * len(fail) + ["clean"] * len(clean),
            "image_id": np.concatenate([fail.image_ids_N, rows]),
            "severity": np.concatenate([fail.severities_N, np.zeros_like(rows)]),
            "before": np.concatenate([fail.predicted_N, clean]),
            "after": np.concatenate([judged.predicted_MN[number], judged.clean_MN[number]]),
            "label": np.concatenate([fail.labels_N, judged.clean_labels_N]),
        }
    )


def read_row(run: Run, unit: ComparedRepair) -> Mapping[str, Any]:
    """The row of a judged repair. Raises StageError if it is not judged, DataError if the row is damaged."""
    path = run.compared(unit.target, unit.method, unit.seed) / ROW
    try:
        row = read_json(path)
    except FileNotFoundError as error:
        raise StageError(f"{path} is missing: {unit.words} is not judged yet. {COMPARED.remedy}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{unreadable(path, error)}. Delete it and compare again.") from error
    if not isinstance(row, dict) or row.get("method") != unit.method:
        raise DataError(f"{path} is damaged: it is not a row of {unit.method}. Delete it and compare again.")
    return row

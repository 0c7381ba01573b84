"""Check limits in whole runs and comparisons: images that neither learn nor judge choose, and the results say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.data.selecting_images import selecting_images
from metarepair.data.workspace import Surroundings, load_surroundings
from metarepair.repairs.stage import unit_data
from metarepair.runs.layout import Run
from metarepair.stages.compare import Comparison
from metarepair.stages.pipeline import Pipeline
from tasks.errors import StageError
from tasks.experiences.store import open_side
from tasks.splits import JUDGE, LEARN, SELECT
from tasks.splits.digests import pixel_digests
from tasks.storage.manifest import require_manifest

TARGET = "gaussian_noise"
METHODS = ["sgd", "bn_adapt", "none"]
SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "device": "cpu",
    "data": {"max_train_images": 200, "max_test_images": 400},
    "mining": {"experiences": ["shot_noise"], "severities": [3, 5], "collect": 60, "shard_images": 200},
    "features": {"extractor": "deployed"},
    "task": {"shots": 1, "query_size": 10},
    "inner": {"steps": 1},
    "train": {"episodes": 1, "round_episodes": 1, "tasks": 1},
    "repair": {"episodes": 1, "tasks": 1, "methods": METHODS},
    "methods": {"sgd": {"epochs": 3, "batch_size": 40, "clean_images": 40}},
    "evaluate": {"others": []},
    "compare": {"methods": METHODS},
    "limits": {"max_clean_drop": 0.0, "max_broken": 0.06},
}


def config_in(storage: Path, **changes: Any) -> Config:
    return parse_config(SETTINGS | {"storage_path": str(storage)} | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("limits")
    Pipeline(config_in(storage)).whole()
    return storage


@pytest.fixture(scope="module")
def here(finished: Path) -> Surroundings:
    return load_surroundings(config_in(finished))


def result_of(storage: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Run(storage / "tiny").repaired(TARGET) / "result.json").read_text())
    return found


def test_selecting_images_neither_learn_nor_judge(finished: Path, here: Surroundings) -> None:
    config, run = config_in(finished), Run(finished / "tiny")
    manifest = require_manifest(run.target(TARGET), "")
    collect = open_side(run.target(TARGET), "collect", manifest)
    data = unit_data(config, here, METHODS, collect, 0)
    parts_N, test = here.test_parts(), here.split("test")
    assert {p: int((parts_N == p).sum()) for p in (LEARN, SELECT, JUDGE)} == {
        LEARN: 100,
        SELECT: 100,
        JUDGE: 200,
    }
    selects = test.image_ids_N[parts_N == SELECT]
    assert not np.isin(data.learn.image_ids_N, selects).any()
    assert np.isin(data.validation.image_ids_N, selects).all()
    selecting = selecting_images(config, here, TARGET)
    assert selecting.clean is not None
    clean = pixel_digests(np.asarray(selecting.clean.images_NHWC))
    assert (np.sort(clean) == np.sort(pixel_digests(test.images(np.flatnonzero(parts_N == SELECT))))).all()
    source = here.environment("test", TARGET)
    judges = [source.images(np.flatnonzero(parts_N == JUDGE), severity) for severity in source.severities]
    shown = pixel_digests(np.asarray(selecting.environment.images_NHWC))
    assert len(shown) == 200
    assert not np.isin(shown, pixel_digests(np.concatenate(judges))).any()


def test_a_result_says_what_was_taken_and_which_method_is_best(finished: Path) -> None:
    result = result_of(finished)
    rows = {row["method"]: row for row in result["methods"]}
    assert rows["none"]["selection"]["kept"]
    taken = [row for row in rows.values() if not row["selection"]["kept"]]
    assert taken, "the limits leave something to take, so that this is tested"
    best = max(taken, key=lambda row: row["selection"]["point"]["environment"])
    assert result["choice"] == {"method": best["method"], "seed": 0, "kept": False}
    for row in taken:
        point = row["selection"]["point"]
        assert point["clean"] >= row["selection"]["clean_before"]
        assert point["broken_bound"] <= 0.06
        assert point["environment"] > row["selection"]["environment_before"]
    page = (finished / "tiny" / "report" / "index.html").read_text()
    assert "Take the repaired model" in page or "Do not take the repaired model" in page
    assert "(taken)" in page


def test_the_saved_weights_are_those_of_the_point(finished: Path, here: Surroundings) -> None:
    before = here.deployed.module.state_dict()
    for row in result_of(finished)["methods"]:
        after = load_file(finished / "tiny" / row["weights"])
        same = all(torch.equal(before[key], after[key]) for key in before if before[key].is_floating_point())
        assert same == row["selection"]["kept"], row["method"]


def test_other_limits_are_refused_for_finished_repairs(finished: Path) -> None:
    Pipeline(config_in(finished)).repair()
    with pytest.raises(StageError, match="limits"):
        Pipeline(config_in(finished, limits={"max_broken": 0.5})).repair()
    with pytest.raises(StageError, match="limits"):
        Pipeline(config_in(finished, limits={})).repair()


def test_a_comparison_takes_the_same_points_and_marks_what_is_kept(finished: Path) -> None:
    Comparison(config_in(finished)).compare()
    run = Run(finished / "tiny")
    for row in result_of(finished)["methods"]:
        judged = json.loads((run.compared(TARGET, row["method"], 0) / "judged.json").read_text())
        assert judged["selection"] == row["selection"]
        assert judged["clean"] == row["clean"]
    table = (run.compare / "table.md").read_text()
    for row in result_of(finished)["methods"]:
        if row["method"] == "bn_adapt":
            assert ("BN-adapted (kept)" in table) == row["selection"]["kept"]
    assert "taken at weight" in table


def test_without_limits_a_result_has_no_choice(tmp_path: Path) -> None:
    Pipeline(config_in(tmp_path, limits={}, repair={"methods": ["bn_adapt", "none"]})).whole()
    result = result_of(tmp_path)
    assert "choice" not in result
    assert all("selection" not in row for row in result["methods"])

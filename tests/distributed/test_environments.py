"""A run or a search on photographs reads only the run's storage; 0, 1 and 2 workers give the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.environments import write_environment
from distributed.search.tune import TuneSearch
from distributed.stages.executor import executor_for
from equal_runs import without_measured
from metarepair.config.run import Config
from metarepair.runs.layout import Run
from metarepair.stages.pipeline import Pipeline
from tasks.datasets import load_dataset
from tasks.environments import UserImages, read_images
from tasks.splits import JUDGE
from tasks.storage.manifest import read_manifest

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def results(run: Run) -> dict[str, Any]:
    """Return the bytes of all weights and failures, and the rows of the table."""
    found: dict[str, Any] = {
        str(path.relative_to(run.root)): path.read_bytes()
        for path in sorted(Path(str(run.root)).rglob("*"))
        if path.name
        in ("model.safetensors", "start.safetensors", "collect.arrow", "fail.arrow", "images.bin")
        and "checkpoints" not in path.parts
    }
    rows = json.loads((run.repaired("phone") / "result.json").read_text())["methods"]
    return found | {"rows": without_measured(rows)}


def write_photographs(folder: Path) -> dict[str, Any]:
    """Write two environments; return the changes of the settings that use them."""
    data = load_dataset("cifar10_sample", "test")
    for recipe in ("compression", "colour"):
        write_environment(folder, data, recipe=recipe, images=240, seed=0)
    return {
        "targets": ["phone"],
        "environments": {
            "phone": {"table": str(folder / "compression" / "labels.csv")},
            "old": {"images": str(folder / "colour")},
        },
        "mining": {"experiences": ["shot_noise", "old"], "collect": 20},
        "train": {"episodes": 2, "round_episodes": 1},
        "repair": {"methods": ["metarepair"]},
        "evaluate": {"others": ["old"]},
    }


def test_photographs_give_the_same_weights_with_any_number_of_workers(
    cluster: None, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    changes = write_photographs(tmp_path / "photos")
    found = []
    for workers in (0, 2):
        pipeline = Pipeline(tiny(tmp_path / str(workers), workers=workers, **changes), executor_for)
        pipeline.mine()
        if workers:  # nothing but the run's storage is needed from now on
            shutil.move(tmp_path / "photos", tmp_path / "away")
        pipeline.whole()
        if workers:
            shutil.move(tmp_path / "away", tmp_path / "photos")
        found.append(results(pipeline.run))
    assert {Path(name).name for name in found[0]} >= {"model.safetensors", "start.safetensors"}
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("pixels", "objective"),
    [
        pytest.param("recomputed", "validation", marks=pytest.mark.soak),
        ("stored", "pseudo_targets"),
    ],
)
def test_a_search_uses_photographs_without_those_that_judge(
    cluster: None, tiny: Callable[..., Config], tmp_path: Path, pixels: str, objective: str
) -> None:
    changes = write_photographs(tmp_path / "photos")
    changes["mining"] |= {"pixels": pixels, "experiences": ["shot_noise", "old", "fog"]}
    search = {
        "trials": 2,
        "objective": objective,
        "experience_sets": {"categories": ["environment", "noise"]},
    }
    search |= {"experience_sets": {"free": ["old", "fog"]}} if objective == "pseudo_targets" else {}
    config = tiny(tmp_path / "runs", search=search, **changes)
    searching = TuneSearch(config)
    searching.pipeline.mine()
    shutil.rmtree(tmp_path / "photos")
    searching.search()
    trials = json.loads((searching.run.search / "trials.json").read_text())
    assert [trial["error"] for trial in trials] == [None, None]
    assert all(0 <= trial["objective"] <= 1 for trial in trials)
    names = {"old"} if objective == "pseudo_targets" else {"old", "phone"}
    assert (Path(str(searching.run.search)) / "inputs" / "distances" / "fid.parquet").is_file()
    copies = Path(str(searching.run.search)) / "inputs" / "images"
    assert {path.name for path in copies.iterdir()} == names
    for name in names:
        copy = images_in(copies / name, name)
        whole = images_in(Path(str(searching.run.environment(name))), name)
        judges_N = whole.parts_N == JUDGE
        np.testing.assert_array_equal(copy.parts_N, whole.parts_N)
        assert judges_N.any()
        assert not copy.images_NHWC[judges_N].any()
        assert not copy.labels_N[judges_N].any()
        assert {copy.names[row] for row in np.flatnonzero(judges_N)} == {""}
        np.testing.assert_array_equal(copy.images_NHWC[~judges_N], whole.images_NHWC[~judges_N])
        np.testing.assert_array_equal(copy.labels_N[~judges_N], whole.labels_N[~judges_N])


def images_in(folder: Path, name: str) -> UserImages:
    manifest = read_manifest(folder)
    assert manifest is not None
    classes = load_dataset("cifar10_sample", "test").classes
    return read_images(folder, manifest, name=name, classes=classes, seed=0)

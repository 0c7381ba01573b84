"""A run on photographs gives the same weights with 0, 1 and 2 workers, which read only the run's storage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.environments import write_environment
from distributed.stages.executor import executor_for
from equal_runs import without_measured
from metarepair.config.run import Config
from metarepair.runs.layout import Run
from metarepair.stages.pipeline import Pipeline
from tasks.datasets import load_dataset

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def results(run: Run) -> dict[str, Any]:
    """Return the bytes of all weights and failures, and the rows of the table."""
    found: dict[str, Any] = {
        str(path.relative_to(run.root)): path.read_bytes()
        for path in sorted(Path(str(run.root)).rglob("*"))
        if path.name in ("model.safetensors", "collect.arrow", "fail.arrow", "images.bin")
        and "checkpoints" not in path.parts
    }
    rows = json.loads((run.repaired("phone") / "result.json").read_text())["methods"]
    return found | {"rows": without_measured(rows)}


def test_photographs_give_the_same_weights_with_any_number_of_workers(
    cluster: None, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    data = load_dataset("cifar10_sample", "test")
    for recipe in ("compression", "colour"):
        write_environment(tmp_path / "photos", data, recipe=recipe, images=240, seed=0)
    changes: dict[str, Any] = {
        "targets": ["phone"],
        "environments": {
            "phone": {"table": str(tmp_path / "photos" / "compression" / "labels.csv")},
            "old": {"images": str(tmp_path / "photos" / "colour")},
        },
        "mining": {"experiences": ["shot_noise", "old"], "collect": 20},
        "train": {"episodes": 4, "round_episodes": 2},
        "repair": {"methods": ["none", "metarepair"]},
        "evaluate": {"others": ["old"]},
    }
    found = []
    for workers in (0, 1, 2):
        pipeline = Pipeline(tiny(tmp_path / str(workers), workers=workers, **changes), executor_for)
        pipeline.mine()
        if workers:  # nothing but the run's storage is needed from now on
            shutil.move(tmp_path / "photos", tmp_path / "away")
        pipeline.whole()
        if workers:
            shutil.move(tmp_path / "away", tmp_path / "photos")
        found.append(results(pipeline.run))
    assert len([name for name in found[0] if name.endswith("model.safetensors")]) >= 2
    assert found[0] == found[1]
    assert found[0] == found[2]

"""Check merged repairs in whole runs and comparisons, and what `status`, `inspect` and `--restart` make of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor

from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.features.confidence_tables import read_confidence
from metarepair.inspection.inspect import inspect
from metarepair.inspection.status import status_of
from metarepair.methods import training
from metarepair.runs.layout import Run
from metarepair.stages import merged
from metarepair.stages.compare import Comparison
from metarepair.stages.pipeline import Pipeline
from tasks.errors import ConfigError, StageError
from tasks.experiences.store import open_side
from tasks.storage.manifest import Manifest, require_manifest

StorageOf = Callable[[str], Path]
METHODS = ["merged_sgd", "merged"]
SGD: dict[str, Any] = {"epochs": 3, "batch_size": 20, "clean_images": 40, "clean_weight": 0.0}
SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "device": "cpu",
    "data": {"max_train_images": 200, "max_test_images": 200},
    "mining": {
        "experiences": ["shot_noise", "snow"],
        "severities": [3, 5],
        "collect": 20,
        "shard_images": 100,
    },
    "features": {"extractor": "deployed"},
    "experiences": {"alpha": 0.3},  # left out, it gives two experiences equal weights
    "task": {"shots": 1, "query_size": 10},
    "inner": {"steps": 1},
    "train": {"episodes": 2, "round_episodes": 1, "tasks": 1},
    "repair": {"episodes": 1, "tasks": 1, "methods": METHODS},
    "methods": {"merged": SGD, "merged_sgd": SGD},
    "evaluate": {"others": []},
}
TARGET = "gaussian_noise"


def config(storage: Path, **changes: Any) -> Config:
    return parse_config(SETTINGS | {"storage_path": str(storage)} | changes)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder with the run, mined and scored; tests must not write to it."""
    storage = tmp_path_factory.mktemp("scored") / "runs"
    pipeline = Pipeline(config(storage))
    pipeline.mine()
    pipeline.score()
    return storage


@pytest.fixture
def storage_of(scored: Path, tmp_path: Path) -> StorageOf:
    """Return a function that copies the storage under a name."""
    return lambda name: Path(shutil.copytree(scored, tmp_path / name))


def weights_in(folder: Any) -> dict[str, Tensor]:
    return load_file(Path(str(folder)) / "model.safetensors")


def manifest_of(run: Run, experience: str) -> Manifest:
    return require_manifest(run.merged(experience), "")


def members_of(run: Run) -> dict[str | None, str]:
    """The experiences' repairs of a run and their states, as `status` has them."""
    stages = {stage.name: stage for stage in status_of(str(run.root)).stages}
    return {member.name: member.state for member in stages["merged"].members} if "merged" in stages else {}


def test_a_run_repairs_for_its_experiences_once_and_averages_by_confidence(storage_of: StorageOf) -> None:
    pipeline = Pipeline(config(storage_of("run")))
    pipeline.whole()
    run = pipeline.run
    result = json.loads((run.repaired(TARGET) / "result.json").read_text())
    found = {row["method"]: row for row in result["methods"]}
    assert set(found) >= set(METHODS)
    assert found["merged"]["images_seen"] == found["merged"]["gradient_steps"] == 0
    assert found["merged_sgd"]["gradient_steps"] > 0
    average = load_file(Path(str(run.root)) / found["merged"]["weights"])
    shot, snow = (weights_in(run.merged(name)) for name in ("shot_noise", "snow"))
    p = read_confidence(run, TARGET).as_dict()
    assert abs(p["shot_noise"] - 0.5) > 0.01
    deployed = pipeline.here.deployed.module.state_dict()
    for key, value in average.items():
        expected = (p["shot_noise"] * shot[key].double() + p["snow"] * snow[key].double()).to(value.dtype)
        assert value.equal(expected if value.is_floating_point() else deployed[key]), key
    assert not all(value.equal(snow[key]) for key, value in shot.items())
    assert members_of(run) == {"shot_noise": "done", "snow": "done"}
    (stage,) = inspect(str(run.merged("snow"))).stages
    assert (stage.kind, stage.name, stage.finished) == ("merged", "snow", True)
    manifest = manifest_of(run, "snow")
    assert set(manifest.config) == {"seed", "model", "validation_fraction", "settings"}
    assert set(manifest.inputs) == {"experience", "deployed", "train"}
    cost = {"seconds", "core_seconds", "forward_images", "backward_images"}
    assert set(manifest.facts) == cost | {"images_seen", "gradient_steps", "workers"}
    assert manifest.facts["backward_images"] == manifest.facts["images_seen"]
    assert manifest.facts["forward_images"] > manifest.facts["images_seen"]  # states were chosen on the way


def test_the_average_of_one_experience_is_its_repair_to_the_bit(storage_of: StorageOf) -> None:
    """The target snow is an experience, too, and is left out of the average for gaussian noise."""
    changes = {"targets": [TARGET, "snow"], "compare": {"methods": METHODS, "seeds": [0]}}
    comparison = Comparison(config(storage_of("one"), **changes))
    comparison.compare()
    run = comparison.run
    assert read_confidence(run, TARGET).as_dict()["snow"] > 0
    own, deployed = (
        weights_in(run.merged("shot_noise")),
        comparison.pipeline.here.deployed.module.state_dict(),
    )
    assert not run.merged("snow").exists()
    for target in (TARGET, "snow"):
        average = weights_in(run.compared(target, "merged", 0))
        for key, value in average.items():
            assert value.equal(own[key] if value.is_floating_point() else deployed[key]), key
    assert not all(value.equal(deployed[key]) for key, value in own.items())
    assert not run.meta("snow").exists()
    table = (run.compare / "table.md").read_text()
    assert "merged repairs, fine-tuned by SGD" in table
    assert "for all targets" in (run.compare / "index.html").read_text()


def test_an_interrupted_preparation_skips_complete_repairs_and_resumes_others(
    storage_of: StorageOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    whole, cut = (Pipeline(config(storage_of(name))) for name in ("whole", "cut"))
    whole.merged()
    step, steps = training.Training._one_step, []

    def watched(self: training.Training) -> Tensor:
        steps.append(self.step)
        return step(self)

    monkeypatch.setattr(training.Training, "_one_step", watched)
    first, second = (manifest_of(whole.run, name).facts["gradient_steps"] for name in ("shot_noise", "snow"))

    def stop(self: training.Training) -> Tensor:
        if len(steps) == first + 4:
            raise KeyboardInterrupt
        return watched(self)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "_one_step", stop)
        with pytest.raises(KeyboardInterrupt):
            cut.merged()
    assert members_of(cut.run) == {"shot_noise": "done", "snow": "begun"}
    steps.clear()
    cut.merged()
    assert steps == list(range(4, second))
    for name in ("shot_noise", "snow"):
        one, two = (weights_in(p.run.merged(name)) for p in (whole, cut))
        assert all(value.equal(two[key]) for key, value in one.items()), name
    assert manifest_of(cut.run, "snow").digest == manifest_of(whole.run, "snow").digest


def test_other_settings_are_refused_and_restart_repairs_anew(storage_of: StorageOf) -> None:
    storage = storage_of("changed")
    with pytest.raises(StageError, match="Train first: metarepair train"):
        Pipeline(config(storage)).repair()
    Pipeline(config(storage)).merged()
    changed = Pipeline(config(storage, methods={"merged": SGD | {"rate": 0.1}, "merged_sgd": SGD}))
    with pytest.raises(StageError, match="rate"):
        changed.merged()
    before = weights_in(changed.run.merged("snow"))
    changed.restart("train")
    assert not changed.run.merged("snow").exists()
    changed.merged()
    after = weights_in(changed.run.merged("snow"))
    assert not all(value.equal(before[key]) for key, value in after.items())
    changed.restart("repair")
    assert manifest_of(changed.run, "snow")


def test_nothing_is_repaired_for_a_target_whose_experiences_are_all_targets(tmp_path: Path) -> None:
    nearest = {"choice": "top_k", "top_k": 1, "alpha": 0.3}
    pipeline = Pipeline(config(tmp_path, experiences=nearest, targets=[TARGET, "shot_noise"]))
    pipeline.mine()
    pipeline.score()
    with pytest.raises(ConfigError, match=f"merged for {TARGET}: .* all in shot_noise"):
        pipeline.train()
    assert not pipeline.run.merged("snow").exists()


def test_no_failure_of_a_held_out_clean_image_is_learned_from(storage_of: StorageOf) -> None:
    pipeline = Pipeline(config(storage_of("held")))
    here, run = pipeline.here, pipeline.run
    data = merged.experience_data(run, pipeline.config, "snow", here)
    assert data.clean is not None
    held = here.split("train").image_ids_N[data.clean.held_out_rows]
    mined = require_manifest(run.experience("snow"), "")
    collected = open_side(run.experience("snow"), "collect", mined, here.environment("train", "snow"))
    assert np.isin(collected.image_ids_N, held).any()
    assert not np.isin(data.learn.image_ids_N, held).any()
    assert len(data.learn) + len(data.validation) == (~np.isin(collected.image_ids_N, held)).sum()

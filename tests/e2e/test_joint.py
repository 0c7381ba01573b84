"""Check joint training in whole runs and comparisons, and what `status`, `inspect` and `--restart` make of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.inspection.status import status_of
from metarepair.runs.context import LocalContext
from metarepair.stages import joint
from metarepair.stages.compare import Comparison
from metarepair.stages.pipeline import Pipeline
from metarepair.stages.train import build_trainer, inputs_of
from tasks.errors import StageError
from tasks.storage.manifest import require_manifest

StorageOf = Callable[[str], Path]
METHODS = ["none", "joint", "joint_finetune", "joint_sgd", "sgd"]
JOINT: dict[str, Any] = {"rounds": 2, "round_steps": 2, "batch_size": 16, "groups": 2, "shift": 2}
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
    "task": {"shots": 1, "query_size": 10},
    "inner": {"steps": 1},
    "train": {"episodes": 2, "round_episodes": 1, "tasks": 1},
    "joint": JOINT,
    "repair": {"episodes": 1, "tasks": 1, "methods": METHODS},
    "evaluate": {"others": []},
}


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


def rows(pipeline: Pipeline) -> dict[str, Any]:
    result = json.loads((pipeline.run.repaired("gaussian_noise") / "result.json").read_text())
    return {row["method"]: row for row in result["methods"]}


def test_a_run_trains_jointly_once_and_repairs_from_it(storage_of: StorageOf) -> None:
    pipeline = Pipeline(config(storage_of("joint")))
    pipeline.whole()
    found, weights = rows(pipeline), load_file(Path(str(pipeline.run.joint)) / "model.safetensors")
    assert set(found) == set(METHODS)
    assert found["joint"]["d_fail"] > 0
    repaired = load_file(Path(str(pipeline.run.root)) / found["joint"]["weights"])
    assert all(value.equal(repaired[key]) for key, value in weights.items())
    assert found["joint"]["images_seen"] == 0
    assert found["joint_finetune"]["images_seen"] > 0


def test_status_and_inspect_name_it(storage_of: StorageOf) -> None:
    pipeline = Pipeline(config(storage_of("named")))
    pipeline.train()
    found = {stage.name: stage for stage in status_of(str(pipeline.run.root)).stages}
    assert found["joint"].members[0].state == "done"


def test_an_interrupted_training_resumes(storage_of: StorageOf, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = (Pipeline(config(storage_of(name))) for name in ("whole", "cut"))
    whole.joint()
    log = joint.log_epoch

    def stop(folder: Any, epoch: Any) -> None:
        log(folder, epoch)
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(joint, "log_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            cut.joint()
    found = {stage.name: stage for stage in status_of(str(cut.run.root)).stages}
    assert (found["joint"].members[0].state, found["joint"].members[0].done) == ("begun", 2)
    cut.joint()
    one, two = (load_file(Path(str(p.run.joint)) / "model.safetensors") for p in (whole, cut))
    assert all(value.equal(two[key]) for key, value in one.items())


def test_other_settings_are_refused_and_restart_trains_anew(storage_of: StorageOf) -> None:
    storage = storage_of("changed")
    Pipeline(config(storage)).train()
    changed = Pipeline(config(storage, joint=JOINT | {"rate": 0.01}))
    with pytest.raises(StageError, match=r"joint\.rate"):
        changed.train()
    with pytest.raises(StageError, match="Train first: metarepair train"):
        Pipeline(config(storage_of("untrained"))).repair()
    before = (Path(str(changed.run.joint)) / "model.safetensors").read_bytes()
    changed.restart("train")
    changed.train()
    assert (Path(str(changed.run.joint)) / "model.safetensors").read_bytes() != before
    changed.restart("repair")
    assert (changed.run.joint / "manifest.json").is_file()


def test_a_comparison_trains_jointly_once_for_its_targets(tmp_path: Path) -> None:
    changes = {
        "targets": ["gaussian_noise", "snow"],
        "compare": {"methods": ["joint_sgd", "none"], "seeds": [0]},
    }
    comparison = Comparison(config(tmp_path, **changes))
    comparison.compare()
    recorded = json.loads((comparison.run.joint / "manifest.json").read_text())
    assert recorded["config"]["experiences"] == ["shot_noise"]  # without the target snow
    table = (comparison.run.compare / "table.md").read_text()
    assert "joint training, fine-tuned" in table
    assert "for all targets" in (comparison.run.compare / "index.html").read_text()
    assert not comparison.run.meta("snow").exists()


def test_meta_training_may_start_from_it(storage_of: StorageOf) -> None:
    settings = config(
        storage_of("start"),
        train=SETTINGS["train"] | {"start": "joint"},
        repair=SETTINGS["repair"] | {"methods": ["none", "metarepair"]},
    )
    pipeline = Pipeline(settings)
    pipeline.whole()
    run = pipeline.run
    joint_ = load_file(Path(str(run.joint)) / "model.safetensors")
    context = LocalContext(folder=run.meta("gaussian_noise"), device=torch.device("cpu"))
    trainer = build_trainer(inputs_of(run, settings, "gaussian_noise"), settings, context)
    trainer.close()
    assert all(value.equal(joint_[key]) for key, value in trainer.parameters.items())
    assert not all(
        value.equal(joint_[key]) for key, value in pipeline.here.deployed.module.named_parameters()
    )
    recorded = json.loads((run.meta("gaussian_noise") / "manifest.json").read_text())
    assert recorded["inputs"]["joint"] == require_manifest(run.joint, "").digest
    again = Pipeline(config(Path(str(run.root)).parent, train=SETTINGS["train"]))
    with pytest.raises(StageError, match=r"train\.start"):
        again.meta_train()

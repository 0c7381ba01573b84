"""Check what preparation and repair are said to take, budgets of core-seconds, and one training for all targets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from metarepair.compare import parts
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.inspection.status import status_of
from metarepair.meta_training.meta_train import MetaTrainer
from metarepair.methods import METHODS
from metarepair.methods.budget import Cost, cost_of
from metarepair.runs.context import LocalContext
from metarepair.stages.compare import Comparison
from metarepair.stages.pipeline import Pipeline
from metarepair.stages.train import build_trainer, inputs_of
from tasks.errors import ConfigError, StageError, WeightsError
from tasks.records import SelectedPixels
from tasks.storage.manifest import Manifest, require_manifest

StorageOf = Callable[[str], Path]
PREPARED = ["joint", "merged", "metarepair", "apricot"]
SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "device": "cpu",
    "targets": ["gaussian_noise", "fog"],
    "data": {"max_train_images": 200, "max_test_images": 200},
    "mining": {
        "experiences": ["shot_noise", "snow", "contrast"],
        "severities": [3, 5],
        "collect": 20,
        "shard_images": 100,
    },
    "features": {"extractor": "deployed"},
    "task": {"shots": 1, "query_size": 10},
    "inner": {"steps": 1},
    "train": {"episodes": 2, "round_episodes": 1, "tasks": 1, "order": "first"},
    "joint": {"rounds": 2, "round_steps": 2, "batch_size": 16, "groups": 2, "shift": 2},
    "repair": {"episodes": 1, "tasks": 1, "methods": ["none", "metarepair"]},
    "methods": {
        "apricot": {"reduced": {"models": 2, "per_class": 4, "epochs": 1}, "epochs": 1},
        "merged": {"epochs": 1, "batch_size": 10, "clean_images": 20},
    },
    "compare": {"methods": PREPARED, "seeds": [0]},
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


def preparations(pipeline: Pipeline) -> dict[str, list[Manifest]]:
    run = pipeline.run
    return {
        "joint": [require_manifest(run.joint, "none")],
        "merged": [require_manifest(run.merged(name), "none") for name in ("shot_noise", "snow", "contrast")],
        "metarepair": [require_manifest(run.meta(target), "none") for target in ("gaussian_noise", "fog")],
        "apricot": [require_manifest(run.prepared("apricot"), "none")],
    }


def spent(pipeline: Pipeline, key: str = "core_seconds") -> dict[str, float]:
    return {name: sum(one.facts[key] for one in made) for name, made in preparations(pipeline).items()}


def test_every_method_is_counted(storage_of: StorageOf) -> None:
    """No images pass through the DNN in `none`; `joint` and `merged` only look at their result."""
    names = [
        "none",
        "finetune",
        "bn_adapt",
        "tent",
        "eata",
        "sar",
        "roid",
        "sgd",
        "augmix",
        "sensei",
        *PREPARED,
    ]
    few = {"epochs": 1}
    small = dict.fromkeys(("sgd", "augmix", "sensei", "tent", "eata", "sar", "roid"), few)
    comparison = Comparison(
        config(
            storage_of("all"),
            targets=["gaussian_noise"],
            compare={"methods": names, "seeds": [0], "budget": "3steps"},
            methods=SETTINGS["methods"] | small,
        )
    )
    comparison.compare()
    facts = {
        unit.method: require_manifest(comparison.run.compared(unit.target, unit.method, 0), "none").facts
        for unit in comparison.units
    }
    learns = set(names) - {"none", "joint", "merged", "bn_adapt"}
    assert {name for name in names if facts[name]["backward_images"] > 0} == learns
    assert {name for name in names if facts[name]["forward_images"] > 0} >= learns | {"bn_adapt"}
    for name in learns:
        assert facts[name]["core_seconds"] > 0
        assert facts[name]["forward_images"] >= facts[name]["images_seen"] > 0, name
    table = (Path(str(comparison.run.compare)) / "table.md").read_text()
    lines = table.partition("## what preparation and repair took")[2].partition("##")[0].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    rows = {method: row for method, *row in cells}
    assert rows["before repair"][:4] == ["none"] * 4
    images = spent_images(comparison.pipeline)
    for name in PREPARED:
        row = rows[METHODS[name].words]
        assert row[2:4] == [f"{count:,}" for count in images[name]], name


def spent_images(pipeline: Pipeline) -> dict[str, tuple[int, int]]:
    run = pipeline.run
    made = {
        "joint": [run.joint],
        "merged": [run.merged(name) for name in ("shot_noise", "snow", "contrast")],
        "metarepair": [run.meta("gaussian_noise")],
        "apricot": [run.prepared("apricot")],
    }
    facts = {
        name: [require_manifest(folder, "none").facts for folder in folders] for name, folders in made.items()
    }
    return {
        name: (sum(f["forward_images"] for f in some), sum(f["backward_images"] for f in some))
        for name, some in facts.items()
    }


def test_joint_training_and_apricot_count_what_they_show(storage_of: StorageOf) -> None:
    comparison = Comparison(config(storage_of("counted")))
    comparison.compare()
    forward = spent(comparison.pipeline, "forward_images")
    assert forward["joint"] == spent(comparison.pipeline, "backward_images")["joint"] == 2 * 2 * 16
    assert forward["apricot"] == 2 * 40  # two models, each on four images of ten classes
    assert forward["metarepair"] > 2 * 2 * 10  # the queries of two episodes for two targets
    assert all(value > 0 for value in spent(comparison.pipeline).values())


@pytest.mark.slow
def test_a_budget_gives_each_preparation_the_same_core_seconds(storage_of: StorageOf) -> None:
    """However few rounds, episodes and epochs are set: they no longer decide."""
    storage = storage_of("budget")
    comparison = Comparison(config(storage, preparation_budget=1.5))
    comparison.compare()
    took = spent(comparison.pipeline)
    assert all(1.5 <= seconds < 6.0 for seconds in took.values()), took
    facts = preparations(comparison.pipeline)
    assert all(one.config["core_seconds"] == 0.75 for one in facts["metarepair"])
    assert facts["joint"][0].facts["images_seen"] > 2 * 2 * 16
    assert facts["metarepair"][0].facts["episodes"] > 2
    table = (Path(str(comparison.run.compare)) / "table.md").read_text()
    assert "given 1.5 core-seconds for all targets together" in table
    stages = {stage.name: stage for stage in status_of(str(comparison.run.root)).stages}
    assert {member.state for name in ("joint", "train", "merged") for member in stages[name].members} == {
        "done"
    }
    with pytest.raises(StageError, match=r"core_seconds: 1\.5 -> 6\.0"):
        Pipeline(config(storage, preparation_budget=6.0)).joint()


def test_an_interrupted_preparation_goes_on_with_what_is_left(
    storage_of: StorageOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(config(storage_of("cut"), preparation_budget=4.0, targets=["gaussian_noise"]))
    run_episode = MetaTrainer.run_episode

    def stop(trainer: MetaTrainer) -> dict[str, float]:
        if trainer.cost["core_seconds"] > 2.0:
            raise KeyboardInterrupt
        return run_episode(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(MetaTrainer, "run_episode", stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.meta_train()
    pipeline.meta_train()
    facts = require_manifest(pipeline.run.meta("gaussian_noise"), "none").facts
    assert 4.0 <= facts["core_seconds"] < 5.0


def test_an_interrupted_meta_training_counts_the_same(
    storage_of: StorageOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation after a round is counted before the checkpoint, so a resumed training has neither more nor less."""
    facts = []
    for name in ("whole", "cut"):
        pipeline = Pipeline(config(storage_of(name), targets=["gaussian_noise"]))
        run_episode = MetaTrainer.run_episode

        def stop(trainer: MetaTrainer, real: Any = run_episode) -> dict[str, float]:
            if trainer.episode == 1:
                raise KeyboardInterrupt
            return dict(real(trainer))

        if name == "cut":
            with monkeypatch.context() as patch:
                patch.setattr(MetaTrainer, "run_episode", stop)
                with pytest.raises(KeyboardInterrupt):
                    pipeline.meta_train()
        pipeline.meta_train()
        facts.append(require_manifest(pipeline.run.meta("gaussian_noise"), "none").facts)
    whole, cut = facts
    assert whole["forward_images"] == cut["forward_images"] > 0
    assert whole["backward_images"] == cut["backward_images"] > 0


def test_costs_of_before_they_were_counted_are_not_known() -> None:
    old = cost_of({"seconds": 120.0})
    assert old.as_json() == {
        "seconds": 120.0,
        "core_seconds": None,
        "forward_images": 0,
        "backward_images": 0,
    }
    assert parts._cells(old) == ("—", "120", "—", "—")
    assert parts._cells(old + Cost(seconds=1, core_seconds=2, forward_images=3)) == ("—", "121", "—", "—")


def test_no_failure_of_a_held_out_clean_image_is_learned_from(storage_of: StorageOf) -> None:
    """By these images repairs may be chosen; an experience shows them as well."""
    made = config(storage_of("held"), train=SETTINGS["train"] | {"query": {"environment": 1, "clean": 1}})
    pipeline = Pipeline(made)
    context = LocalContext(folder=pipeline.run.meta("fog"), device=torch.device("cpu"))
    trainer = build_trainer(inputs_of(pipeline.run, made, "fog"), made, context)
    held = set(pipeline.here.clean().held_out_rows.tolist())
    ids = pipeline.here.split("train").image_ids_N
    seen = {
        int(image_id)
        for experience in trainer.source.experiences.values()
        for side in (experience.collect, experience.fail)
        for image_id in side.image_ids_N
    }
    assert len(seen) > 100
    assert held
    assert not seen & {int(ids[row]) for row in held}
    for experience in trainer.source.experiences.values():  # whose pixels stay on storage
        assert isinstance(experience.fail.images_NHWC, SelectedPixels)
        rows = np.array([3, 0])
        pixels = experience.fail.take(rows).images_NHWC
        assert np.array_equal(pixels, experience.fail.images_NHWC[rows])
        assert np.array_equal(pixels, np.asarray(experience.fail.images_NHWC)[rows])
    trainer.close()


def test_a_start_of_another_dnn_is_refused_before_anything_is_deleted(storage_of: StorageOf) -> None:
    storage = storage_of("refused")
    Pipeline(config(storage)).train()
    other = SETTINGS["train"] | {"start": "shipped:convnext_cifar10"}
    changed = Pipeline(config(storage, train=other))
    with pytest.raises(WeightsError, match=r"train\.start='shipped:convnext_cifar10' names a file"):
        changed.restart("train")
    assert require_manifest(changed.run.meta("fog"), "none").facts["episodes"] == 2
    with pytest.raises(WeightsError, match=r"train\.start"):
        Comparison(config(storage, train=other)).compare()


def test_scoring_again_keeps_what_does_not_depend_on_it(storage_of: StorageOf) -> None:
    storage = storage_of("kept")
    methods = {"repair": SETTINGS["repair"] | {"methods": ["joint", "merged"]}}
    pipeline = Pipeline(config(storage, **methods))
    pipeline.train()
    pipeline.restart("score")
    assert require_manifest(pipeline.run.joint, "none").facts["images_seen"]
    assert require_manifest(pipeline.run.merged("snow"), "none").facts["images_seen"]
    assert not (Path(str(pipeline.run.root)) / "meta" / "fog").exists()
    drawn = Pipeline(config(storage, **methods, joint=SETTINGS["joint"] | {"draw": "confidence"}))
    drawn.restart("score")
    assert not (Path(str(pipeline.run.root)) / "joint").exists()
    drawn.score()
    drawn.train()
    assert require_manifest(drawn.run.joint, "none").inputs.keys() >= {"confidence fog"}


def test_methods_that_would_take_no_step_are_refused(tmp_path: Path) -> None:
    idle = config(tmp_path, inner={"steps": 0}, repair={"methods": ["finetune"]})
    with pytest.raises(ConfigError, match=r"finetune repairs by inner\.steps, and they are 0"):
        Pipeline(idle)
    compared = {"methods": ["joint_finetune", "none"]}
    with pytest.raises(ConfigError, match=r"joint_finetune repairs by inner\.steps"):
        Comparison(config(tmp_path, inner={"steps": 0}, compare=compared))
    Pipeline(config(tmp_path, inner={"steps": 0}))  # MetaRepair gives θ_meta


def test_a_run_of_several_targets_tells_what_each_took(storage_of: StorageOf) -> None:
    """The first target is repaired before the second is trained for."""
    pipeline = Pipeline(
        config(storage_of("several"), repair=SETTINGS["repair"] | {"methods": ["joint", "metarepair"]})
    )
    pipeline.whole()
    for target in ("gaussian_noise", "fog"):
        result = json.loads((Path(str(pipeline.run.repaired(target))) / "result.json").read_text())
        trained = require_manifest(pipeline.run.meta(target), "none").facts
        assert result["preparations"]["metarepair"]["forward_images"] == trained["forward_images"]
        assert result["preparations"]["joint"]["forward_images"] == 2 * 2 * 16 / 2  # half of what serves both


def test_no_target_of_a_comparison_is_an_experience(tmp_path: Path) -> None:
    mining = SETTINGS["mining"] | {"experiences": ["fog", "snow"]}
    with pytest.raises(
        ConfigError, match="fog is a target and an experience, so metarepair would learn from it"
    ):
        Comparison(config(tmp_path, mining=mining))
    for allowed in (
        {"targets": ["fog"]},
        {"train": SETTINGS["train"] | {"shared": True}},
        {"compare": {"methods": ["joint", "merged", "none"]}},
        {"experiences": {"choice": "list", "names": ["snow"]}},
    ):
        made = config(tmp_path, mining=mining, **allowed)
        Comparison(made)
        assert "fog" not in made.shared_experiences


def test_one_meta_training_serves_all_targets(storage_of: StorageOf) -> None:
    storage = storage_of("shared")
    train = SETTINGS["train"] | {"shared": True}
    pipeline = Pipeline(config(storage, train=train))
    pipeline.whole()
    root = Path(str(pipeline.run.root))
    assert [path.name for path in (root / "meta").iterdir()] == ["shared"]
    assert require_manifest(pipeline.run.meta("shared"), "none").facts["episodes"] == 2
    for target in ("gaussian_noise", "fog"):
        result = json.loads((root / "repaired" / target / "result.json").read_text())
        assert result["preparation"]["episodes"] == 2
    stages = {stage.name: stage for stage in status_of(str(root)).stages}
    assert [(member.path, member.state) for member in stages["train"].members] == [("meta/shared", "done")]
    weights = load_file(root / "meta" / "shared" / "start.safetensors")
    Pipeline(config(storage, train=train)).restart("train")
    assert not (root / "meta" / "shared").exists()
    Pipeline(config(storage, train=train)).meta_train()
    again = load_file(root / "meta" / "shared" / "start.safetensors")
    assert all(value.equal(again[key]) for key, value in weights.items())


def test_meta_training_starts_from_a_weights_file(storage_of: StorageOf) -> None:
    """It starts from the weights of joint training just as well when these are given as a file."""
    storage = storage_of("start")
    joint = Pipeline(
        config(storage, targets=["gaussian_noise"], train=SETTINGS["train"] | {"start": "joint"})
    )
    joint.train()
    weights = load_file(Path(str(joint.run.meta("gaussian_noise"))) / "start.safetensors")
    given = Path(str(joint.run.joint)) / "model.safetensors"
    other = storage_of("other")
    file = Pipeline(
        config(other, targets=["gaussian_noise"], train=SETTINGS["train"] | {"start": str(given)})
    )
    file.train()
    again = load_file(Path(str(file.run.meta("gaussian_noise"))) / "start.safetensors")
    assert all(value.equal(again[key]) for key, value in weights.items())
    manifest = require_manifest(file.run.meta("gaussian_noise"), "none")
    assert "start" in manifest.inputs
    assert not (Path(str(file.run.root)) / "joint").exists()

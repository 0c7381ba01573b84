"""User errors on the command line end with exit code 2 and one line that says what to do; no file is lost."""

from __future__ import annotations

import importlib
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bad_input import Cli, Files, cut, files_under
from metarepair.meta_training.meta_train import MetaTrainer
from metarepair.weights import SHIPPED
from tasks.datasets import DATA_VARIABLE, SAMPLE

pytestmark = pytest.mark.usefixtures("watched")


def write_cifar(folder: Path, labels: np.ndarray) -> None:
    """Write CIFAR-10 as .npz files under `folder`, with one black image per label in each split."""
    (folder / "cifar10").mkdir(parents=True)
    images = np.zeros((len(labels), 32, 32, 3), np.uint8)
    for split in ("train", "test"):
        np.savez(folder / "cifar10" / f"{split}.npz", images=images, labels=labels)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sead=1", ["no setting 'sead'", "'seed'", "tiny.yaml"]),
        ("train.episods=1", ["no setting 'train.episods'", "'train.episodes'"]),
        ("targets=[gausian_noise]", ["no corruption 'gausian_noise'", "'gaussian_noise'", "brightness"]),
        ("mining.severities=[7]", ["mining.severities.0=7", "5"]),
        ("train.episodes=many", ["train.episodes='many'", "whole number"]),
        ("train.episodes=0", ["train.episodes=0", "1"]),
        ("train.episodes", ["--set 'train.episodes' is not key=value", "--set train.episodes=20"]),
        ("name=..", ["name='..'"]),
        ("model.name=resnet8_cifr", ["no model 'resnet8_cifr'", "'resnet8_cifar'"]),
        ("model.weights=shipped:resnet9", ["'shipped:resnet9' is not shipped", "shipped:resnet8_cifar10"]),
        (
            "model.weights=absent.safetensors",
            ["absent.safetensors", "no such file", "shipped:resnet8_cifar10"],
        ),
        ("data.name=cifar_10", ["no data set 'cifar_10'", "'cifar10'"]),
        ("repair.methods=[metarepiar]", ["no repair method 'metarepiar'", "'metarepair'"]),
        ("experiences={choice: top_k, top_k: 3}", ["experiences.top_k=3", "1..2"]),
        ("experiences={choice: list, names: [snow]}", ["snow", "shot_noise"]),
        ("features.extractor=inceptoin", ["no feature extractor 'inceptoin'", "'inception'"]),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(
    fresh: Cli, override: str, says: list[str]
) -> None:
    fresh.assert_refused("run", "--set", override, says=says)


def test_a_missing_configuration_is_refused(fresh: Cli) -> None:
    fresh.assert_refused(
        "run", "--config", str(fresh.folder / "absent.yaml"), says=["absent.yaml cannot be read"]
    )


@pytest.mark.parametrize("text", ["name: [", "just words", "", "\x00", "name: a\nname: b\n"])
def test_a_configuration_that_is_not_settings_is_refused(fresh: Cli, text: str) -> None:
    (fresh.folder / "bad.yaml").write_text(text, encoding="utf-8")
    fresh.assert_refused("run", "--config", str(fresh.folder / "bad.yaml"), says=["bad.yaml"])


def test_an_empty_data_folder_is_refused_with_the_layouts(
    fresh: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fresh.folder / "data").mkdir()
    monkeypatch.setenv(DATA_VARIABLE, str(fresh.folder / "data"))
    says = ["No CIFAR-10 under", "cifar-10-batches-py", "data.name=cifar10_sample"]
    fresh.assert_refused("run", "--set", "data.name=cifar10", says=says)


def test_a_missing_data_folder_is_refused(fresh: Cli) -> None:
    override = f"data={{name: cifar10, root: {fresh.folder / 'nowhere'}}}"
    fresh.assert_refused("run", "--set", override, says=["nowhere is not a folder", "data.root"])


def test_an_unset_data_folder_is_refused(fresh: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    fresh.assert_refused("run", "--set", "data.name=cifar10", says=["Where is CIFAR-10?", DATA_VARIABLE])


def test_a_truncated_image_file_is_refused_by_name(fresh: Cli) -> None:
    path = fresh.folder / "data" / "cifar10" / "cifar10_train_webp.zip"
    path.parent.mkdir(parents=True)
    shutil.copy(SAMPLE / "train.zip", path)
    shutil.copy(SAMPLE / "test.zip", path.with_name("cifar10_test_webp.zip"))
    cut(path)
    override = f"data={{name: cifar10, root: {fresh.folder / 'data'}}}"
    says = ["cifar10_train_webp.zip", "cannot be read", "Give a zip of lossless WebP strips"]
    fresh.assert_refused("run", "--set", override, says=says)


def test_a_label_outside_the_classes_is_refused_with_its_row(fresh: Cli) -> None:
    labels = np.arange(200) % 10
    labels[17] = 10
    write_cifar(fresh.folder / "data", labels)
    override = f"data={{name: cifar10, root: {fresh.folder / 'data'}}}"
    fresh.assert_refused("run", "--set", override, says=["label of image 17 is 10", "10 classes"])


def test_too_few_failures_are_refused_with_how_many_there_are(fresh: Cli) -> None:
    says = ["shot_noise on the train split", "mining.collect=100000"]
    unfinished = "experiences/shot_noise"
    message = fresh.assert_refused("mine", "--set", "mining.collect=100000", says=says, unfinished=unfinished)
    assert re.search(r"fails on [1-9]\d+ examples", message)


def test_weights_of_another_dnn_are_refused_with_the_counts(fresh: Cli) -> None:
    tensors = load_file(SHIPPED / "resnet8_cifar10.safetensors")
    narrow = {key: value[:3].contiguous() if value.dim() else value for key, value in tensors.items()}
    save_file(narrow, fresh.folder / "other.safetensors")
    override = f"model.weights={fresh.folder / 'other.safetensors'}"
    says = ["other.safetensors does not fit resnet8_cifar", "of another shape", "model.name"]
    fresh.assert_refused("mine", "--set", override, says=says)


@pytest.mark.parametrize("protocol", ["torch", "plain"])
def test_a_pickle_in_place_of_weights_is_refused_and_runs_nothing(fresh: Cli, protocol: str) -> None:
    trace, path = fresh.folder / "ran", fresh.folder / "model.pt"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trace,)

    if protocol == "torch":
        torch.save({"a": Attack()}, path)
    else:
        path.write_bytes(pickle.dumps(Attack()))
    fresh.assert_refused(
        "mine", "--set", f"model.weights={path}", says=["model.pt is a pickle", "safetensors"]
    )
    assert not trace.exists()


def test_truncated_weights_are_refused(fresh: Cli) -> None:
    path = fresh.folder / "model.safetensors"
    shutil.copy(SHIPPED / "resnet8_cifar10.safetensors", path)
    cut(path)
    says = ["model.safetensors is not a whole safetensors file", "Copy it again"]
    fresh.assert_refused("mine", "--set", f"model.weights={path}", says=says)


def test_a_storage_path_that_is_a_file_is_refused(fresh: Cli) -> None:
    path = fresh.folder / "taken"
    path.write_text("mine", encoding="utf-8")
    fresh.assert_refused("run", "--storage", str(path), says=["taken' cannot be written", "--storage"])


@pytest.mark.parametrize(
    "storage",
    [
        "ftp://host/runs",
        "s3://",
        "s3:///",
        "gs://bucket/../x",
        "hdfs://a/b",
        "s3:/bucket/x",
        "s3:bucket",
        "S3:/bucket",
        "gs:/bucket",
        "file:",
        "file:/tmp/x",
        "https:/host/x",
    ],
)
def test_storage_of_another_kind_is_refused(
    fresh: Cli, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    monkeypatch.chdir(fresh.folder)
    fresh.assert_refused("run", "--storage", storage, says=[storage, "Give "])
    assert not list(fresh.folder.glob("*:*"))


def test_cuda_without_a_gpu_is_refused(fresh: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fresh.assert_refused("run", "--set", "device=cuda", says=["device=cuda", "device=cpu"])


@pytest.mark.parametrize(
    ("verb", "says"), [("score", "mine"), ("train", "mine"), ("repair", "mine"), ("report", "repair")]
)
def test_a_stage_without_its_prerequisite_is_refused_and_names_it(fresh: Cli, verb: str, says: str) -> None:
    fresh.assert_refused(
        verb,
        says=["gaussian_noise" if verb == "report" else "is not finished", f"metarepair {says} --config"],
    )


def test_repair_before_training_is_refused(done: Cli) -> None:
    for stage in ("meta", "repaired", "report"):
        shutil.rmtree(done.root / stage)
    done.assert_refused("repair", says=["meta/gaussian_noise is not finished", "metarepair train --config"])


def test_missing_inception_weights_are_an_error_and_never_another_extractor(
    done: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("features", "score", "meta", "repaired", "report"):
        shutil.rmtree(done.root / stage)
    for name in ("nothing", "home"):
        (done.folder / name).mkdir()
    monkeypatch.setenv("METAREPAIR_WEIGHTS", str(done.folder / "nothing"))
    monkeypatch.setenv("HOME", str(done.folder / "home"))
    monkeypatch.setenv("TORCH_HOME", str(done.folder / "home"))
    says = ["no FID Inception weights", "METAREPAIR_WEIGHTS", "efficientnet_lite0"]
    done.assert_refused("score", "--set", "features.extractor=inception", says=says, unfinished="features")
    assert not list(done.root.glob("features/*.parquet"))


def test_a_truncated_store_is_refused_by_the_name_of_the_file(done: Cli) -> None:
    shutil.rmtree(done.root / "features")
    shutil.rmtree(done.root / "score")
    cut(done.root / "experiences" / "shot_noise" / "collect.arrow")
    done.assert_refused(
        "score", says=["shot_noise/collect.arrow", "`metarepair mine`"], unfinished="features"
    )


def test_mining_again_mends_only_the_damaged_file(done: Cli) -> None:
    def pixels_and_index() -> Files:
        found = files_under(done.root / "experiences")
        return {k: v for k, v in found.items() if k != "shot_noise/manifest.json"}  # it also records seconds

    before = pixels_and_index()
    cut(done.root / "experiences" / "shot_noise" / "collect.arrow")
    code, out, _ = done.answer("mine")
    assert code == 0
    assert "shot_noise/collect.arrow" in out
    assert out.count("Regenerating it now") == 1
    assert pixels_and_index() == before


def test_a_changed_byte_of_θ_meta_is_refused(done: Cli) -> None:
    shutil.rmtree(done.root / "repaired")
    cut(done.root / "meta" / "gaussian_noise" / "start.safetensors")
    done.assert_refused(
        "repair", says=["meta/gaussian_noise/start.safetensors"], unfinished="repaired/gaussian_noise"
    )


@pytest.mark.parametrize(
    ("verb", "override", "says"),
    [
        ("mine", "mining.collect=30", ["mining.collect: 20 -> 30", "--restart"]),
        ("mine", "seed=1", ["seed: 0 -> 1", "--restart"]),
        ("score", "experiences.rule=uniform", ["experiences.rule: hinge -> uniform", "--restart"]),
        ("train", "train.outer_rate=0.5", ["train.outer_rate: 0.001 -> 0.5", "--restart"]),
        ("repair", "repair.episodes=2", ["repair.episodes: 1 -> 2", "--restart"]),
    ],
)
def test_changed_settings_of_a_finished_stage_are_refused_with_the_difference(
    done: Cli, verb: str, override: str, says: list[str]
) -> None:
    done.assert_refused(verb, "--set", override, says=says)


def test_restart_repeats_a_stage_and_discards_the_later_ones(done: Cli) -> None:
    mined = files_under(done.root / "experiences")
    code, stderr = done.run("score", "--restart", "--set", "experiences.rule=uniform")
    assert code == 0, stderr
    assert (done.root / "score" / "manifest.json").exists()
    assert files_under(done.root / "experiences") == mined
    assert not (done.root / "repaired").exists()
    done.assert_refused("repair", "--set", "experiences.rule=uniform", says=["metarepair train"])


def test_a_restart_with_a_wrong_setting_deletes_nothing(done: Cli) -> None:
    done.assert_refused(
        "run", "--restart", "--set", "model.weights=absent.safetensors", says=["absent.safetensors"]
    )
    done.assert_refused("run", "--restart", "--set", "repair.methods=[metarepiar]", says=["metarepiar"])
    done.assert_refused(
        "run", "--restart", "--set", "data={name: cifar10, root: /nowhere}", says=["/nowhere"]
    )


def test_restarting_pretraining_with_a_wrong_setting_deletes_nothing(fresh: Cli) -> None:
    (fresh.root / "deployed").mkdir()
    (fresh.root / "deployed" / "model.safetensors").write_bytes(b"hours of work")
    override = "data={name: cifar10, root: /nowhere}"
    fresh.assert_refused("pretrain", "--restart", "--set", override, says=["/nowhere is not a folder"])


def test_repeating_the_command_leaves_a_finished_run_unchanged(done: Cli) -> None:
    before = files_under(done.root)
    assert done.run("run")[0] == 0
    after = files_under(done.root)
    assert {k: v for k, v in after.items() if not k.startswith("report/")} == {
        k: v for k, v in before.items() if not k.startswith("report/")
    }


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', '{"files": {}}', "null"])
@pytest.mark.parametrize(("folder", "verb"), [("experiences/shot_noise", "score"), ("score", "train")])
def test_a_damaged_manifest_is_refused_by_name(done: Cli, folder: str, verb: str, content: str) -> None:
    (done.root / folder / "manifest.json").write_text(content, encoding="utf-8")
    done.assert_refused(verb, says=[f"{folder}/manifest.json is damaged", "--restart"])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', '{"files": {}}', "null"])
@pytest.mark.parametrize(
    ("folder", "verb"),
    [("experiences/shot_noise", "mine"), ("features/experience-shot_noise", "score"), ("score", "score")],
)
def test_repeating_a_stage_mends_a_damaged_manifest(done: Cli, folder: str, verb: str, content: str) -> None:
    path = done.root / folder / "manifest.json"
    before = path.read_text(encoding="utf-8")
    path.write_text(content, encoding="utf-8")
    code, out, _ = done.answer(verb)
    assert code == 0
    assert "manifest.json is damaged" in out
    assert json.loads(path.read_text(encoding="utf-8"))["files"] == json.loads(before)["files"]


@pytest.mark.parametrize("name", ["fid.parquet", "confidence.csv", "heatmap.png"])
def test_scoring_again_mends_a_damaged_score(done: Cli, name: str) -> None:
    before = files_under(done.root / "score")
    cut(done.root / "score" / name)
    code, out, _ = done.answer("score")
    assert code == 0
    assert f"score/{name} is damaged" in out
    assert files_under(done.root / "score") == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 1}'])
def test_a_damaged_result_is_refused_by_name(done: Cli, content: str) -> None:
    (done.root / "repaired/gaussian_noise/result.json").write_text(content, encoding="utf-8")
    done.assert_refused("report", says=["gaussian_noise/result.json", "--restart"])


def interrupt(
    monkeypatch: pytest.MonkeyPatch, place: str, calls: int, error: BaseException | None = None
) -> None:
    """Let the function at `place` run `calls` times, then raise KeyboardInterrupt (or `error`)."""
    module, _, name = place.rpartition(".")
    try:
        owner: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        parent, _, cls = module.rpartition(".")
        owner = getattr(importlib.import_module(parent), cls)
    real: Callable[..., Any] = getattr(owner, name)
    count = 0

    def stopping(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count > calls:
            raise error or KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, stopping)


RESULTS = (".arrow", ".safetensors", "metrics.json", "confidence.csv")


# One place in each of mining, features, training and repair is quick; the others are marked slow.
@pytest.mark.parametrize(
    ("place", "calls"),
    [
        ("metarepair.stages.mining.write_part", 3),
        pytest.param("metarepair.stages.mining.finish_environment", 1, marks=pytest.mark.slow),
        pytest.param("tasks.experiences.store.write_failures", 7, marks=pytest.mark.slow),
        ("metarepair.stages.features.write_features", 1),
        pytest.param("metarepair.stages.score.write_scores", 0, marks=pytest.mark.slow),
        ("metarepair.meta_training.meta_train.MetaTrainer.run_episode", 1),
        pytest.param("metarepair.meta_training.meta_train.write_state", 1, marks=pytest.mark.slow),
        pytest.param("metarepair.runs.run_stage.write_manifest", 1, marks=pytest.mark.slow),
        ("metarepair.repairs.stage.save_weights", 1),
        pytest.param("metarepair.repairs.result._write_samples", 0, marks=pytest.mark.slow),
    ],
)
def test_after_ctrl_c_the_same_command_produces_identical_bytes(
    fresh: Cli, finished_run: Path, monkeypatch: pytest.MonkeyPatch, place: str, calls: int
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, place, calls)
        code, stderr = fresh.run("run")
    assert code == 1
    assert "run the same command again" in stderr
    assert "Traceback" not in stderr
    assert not (fresh.root / "repaired/gaussian_noise/manifest.json").exists()
    code, stderr = fresh.run("run")
    assert code == 0, stderr
    expected = files_under(finished_run / "runs" / "tiny")
    found = files_under(fresh.root)
    assert not [name for name in found if ".tmp" in name]
    assert {k: v for k, v in found.items() if k.endswith(RESULTS)} == {
        k: v for k, v in expected.items() if k.endswith(RESULTS)
    }


def test_resuming_half_done_mining_with_other_settings_is_refused_with_the_difference(
    fresh: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, "metarepair.stages.mining.write_part", 1)
        assert fresh.run("mine")[0] == 1
    says = ["started with other settings", "mining.collect: 20 -> 10", "--restart"]
    fresh.assert_refused("mine", "--set", "mining.collect=10", says=says)
    code, stderr = fresh.run("mine", "--restart", "--set", "mining.collect=10")
    assert code == 0, stderr


def test_an_interrupted_training_is_not_resumed_with_other_settings(
    done: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("meta", "repaired", "report"):
        shutil.rmtree(done.root / stage)
    with monkeypatch.context() as patch:
        interrupt(patch, "metarepair.meta_training.meta_train.MetaTrainer.run_episode", 1)
        assert done.run("train")[0] == 1
    assert list(done.root.glob("meta/gaussian_noise/checkpoints/*/state.json"))
    says = ["train.outer_rate: 0.001 -> 0.5", "--restart"]
    done.assert_refused("train", "--set", "train.outer_rate=0.5", says=says, unfinished="meta/gaussian_noise")


def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_the_last_checkpoint(
    done: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("meta", "repaired", "report"):
        shutil.rmtree(done.root / stage)
    real = MetaTrainer.run_episode

    def explode(trainer: MetaTrainer) -> dict[str, float]:
        if trainer.episode == 1:
            for value in trainer.parameters.values():
                value.mul_(1e30)
        return real(trainer)

    monkeypatch.setattr(MetaTrainer, "run_episode", explode)
    says = ["query loss of episode 2", "nan", "inner.rate", "last checkpoint is kept"]
    done.assert_refused("train", "--set", "train.max_skipped=0", says=says, unfinished="meta/gaussian_noise")
    kept = sorted(done.root.glob("meta/gaussian_noise/checkpoints/*"))
    assert [path.name for path in kept] == ["checkpoint-000001"]
    monkeypatch.undo()
    assert done.run("train")[0] == 0


def test_a_full_disk_is_reported_and_the_same_command_resumes(
    fresh: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(
            patch, "metarepair.stages.mining.write_part", 2, OSError(28, "No space left on device", "part")
        )
        fresh.assert_refused(
            "mine", says=["No space left", "Make room"], unfinished="experiences/impulse_noise"
        )
    assert fresh.run("mine")[0] == 0

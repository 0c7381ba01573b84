"""A model of the Hugging Face Hub on the command line, offline, from a cache in the hub's own layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from benchmarks.environments import write_environment
from hub_cache import COMMIT, cifar_files, put, use_cache
from kits import KIT, with_kit
from metarepair.cli import main
from metarepair.config.kit import KitFile
from metarepair.config.load import load_config
from metarepair.fixing.plan import Speeds
from metarepair.stages import fix as fix_stage
from tasks.datasets import CIFAR10_CLASSES, load_dataset

NAME = "hf-hub:me/net"
PINNED = f"{NAME}@{COMMIT}"
SPEEDS = Speeds(
    step_s=1.0, image_s=1e-5, learned_image_s=2e-2, mined_image_s=1.0, task_s=1.0, support_images=100
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = use_cache(monkeypatch, tmp_path / "hub")
    put(cache, "me/net", cifar_files())
    return cache


@pytest.fixture
def settings(tmp_path: Path, tiny_settings: str) -> Path:
    path = tmp_path / "hub.yaml"
    path.write_text(f"{tiny_settings}model: {{name: '{NAME}'}}\n", encoding="utf-8")
    return path


def run(verb: str, settings: Path, *words: str) -> int:
    return main([verb, "--config", str(settings), "--storage", str(settings.parent / "runs"), *words])


@pytest.mark.slow
def test_fix_hands_over_the_hubs_own_file_repaired(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fix_stage, "measure", lambda *_: (SPEEDS, 1))
    # The sorted names of the folders are in the other order than the model's classes.
    names = [f"{9 - label}_{name}" for label, name in enumerate(CIFAR10_CLASSES)]
    put(cache, "me/net", cifar_files(label_names=names))
    write_environment(tmp_path, load_dataset("cifar10_sample", "test"), recipe="colour", images=160, seed=0)
    (tmp_path / "colour" / "labels.csv").unlink()
    train = load_dataset("cifar10_sample", "train")
    for row in range(160):
        path = tmp_path / "clean" / train.classes[train.labels_N[row]] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(train.images_NHWC[row]).save(path)
    for folder in (tmp_path / one / two for one in ("colour", "clean") for two in CIFAR10_CLASSES):
        folder.rename(folder.with_name(names[CIFAR10_CLASSES.index(folder.name)]))
    out = tmp_path / "repaired"
    words = ["fix", "--model", NAME, "--images", str(tmp_path / "colour"), "--clean", str(tmp_path / "clean")]
    words += ["--out", str(out), "--budget", "90s", "--max-clean-drop", "0.9"]
    assert main(words) == 0, capsys.readouterr()
    said = capsys.readouterr()
    assert f"{PINNED}: weights model.safetensors with the SHA-256" in said.out + said.err
    planned = load_config(out / "fix.yaml")
    assert (planned.model.name, planned.model.weights, planned.model.input_size) == (PINNED, PINNED, 32)
    assert planned.data.classes == tuple(names)
    before = load_file(cache / "models--me--net" / "snapshots" / COMMIT / "model.safetensors")
    after = load_file(out / "repaired.safetensors")
    assert before.keys() == after.keys()
    assert any(not before[key].equal(after[key]) for key in before)
    assert yaml.safe_load((out / "README.md").read_text("utf-8").split("---\n")[1])["base_model"] == "me/net"
    card = json.loads((out / "card.json").read_text("utf-8"))
    assert (card["made_from"], card["model"]["name"]) == (PINNED, PINNED)
    assert str(cache) not in json.dumps(card)


def test_a_run_is_resumed_with_the_same_commit_and_refused_with_another(
    cache: Path, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("mine", settings) == 0
    manifest = json.loads(next((settings.parent / "runs").rglob("manifest.json")).read_text("utf-8"))
    assert manifest["config"]["model"]["name"] == PINNED
    assert "deployed" in manifest["inputs"]
    assert run("mine", settings) == 0
    put(cache, "me/net", cifar_files(note="later"), commit="b" * 40)
    capsys.readouterr()
    assert run("mine", settings) == 2
    assert COMMIT in capsys.readouterr().err
    other = settings.with_name("other.yaml")
    other.write_text(
        settings.read_text("utf-8").replace(f"'{NAME}'", "densenet121, weights: absent.pth"), "utf-8"
    )
    assert run("mine", other, "--model", PINNED) == 0


def test_a_missing_model_ends_the_command_before_any_work(
    cache: Path, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run", settings, "--model", "hf-hub:me/nett") == 2
    said = capsys.readouterr().err
    assert said.startswith("metarepair: hf-hub:me/nett@main: config.json is not in the cache of ")
    assert "hf download me/nett" in said
    assert not (settings.parent / "runs").exists()


@pytest.mark.slow
def test_a_kit_of_a_hubs_model_serves_where_its_config_is_cached(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kit.yaml").write_text(yaml.safe_dump(KIT | {"model": {"name": NAME}}), "utf-8")
    kit = tmp_path / "kit"
    assert main(["kit", "--config", str(tmp_path / "kit.yaml"), "--out", str(kit)]) == 0
    assert KitFile.read(kit).model.name == PINNED
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(with_kit(kit, tmp_path / "runs")), "utf-8")
    snapshot = cache / "models--me--net" / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()  # the kit has the weights
    assert main(["repair", "--config", str(tmp_path / "run.yaml")]) == 2  # no image is mined yet
    assert "mine" in capsys.readouterr().err
    assert main(["mine", "--config", str(tmp_path / "run.yaml")]) == 0
    use_cache(monkeypatch, tmp_path / "another_machine")
    capsys.readouterr()
    assert main(["mine", "--config", str(tmp_path / "run.yaml")]) == 2
    assert f"{PINNED}: config.json is not in the cache" in capsys.readouterr().err


def test_doctor_probes_the_hubs_own_weights(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", NAME]) == 0
    said = capsys.readouterr().out
    assert "new random weights" not in said
    assert f"{PINNED}: weights model.safetensors" in said


def test_kit_and_diagnose_need_no_weights_of_a_hub(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("kit", "diagnose", "fix"):
        images = [] if verb == "kit" else ["--images", str(tmp_path / "absent")]
        words = ["--clean", str(tmp_path / "absent"), "--out", str(tmp_path / "out"), *images]
        assert main([verb, "--model", NAME, *words]) == 2
        assert "absent" in capsys.readouterr().err
        assert main([verb, "--model", "timm:resnet18", *words]) == 2
        assert "--weights is missing" in capsys.readouterr().err

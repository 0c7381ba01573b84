"""Regression tests for cases that lost work, mixed settings or ended in a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from metarepair.cli import main


def run(folder: Path, verb: str, *arguments: str) -> int:
    return main([verb, "--config", str(folder / "tiny.yaml"), "--storage", str(folder / "runs"), *arguments])


def artefacts(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted((folder / "runs").rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("verb", "setting"),
    [
        ("score", "features.extractor=inception"),
        ("train", "targets=[fog]"),
        ("repair", "targets=[fog]"),
        ("train", "mining.severities=[3]"),
    ],
)
def test_a_restart_that_cannot_run_deletes_nothing(
    tiny_run: Path, verb: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAREPAIR_WEIGHTS", str(tiny_run))
    monkeypatch.setenv("HOME", str(tiny_run))
    before = artefacts(tiny_run)
    assert run(tiny_run, verb, "--restart", "--set", setting) == 2
    assert artefacts(tiny_run) == before


def test_a_report_without_metarepair_can_be_made(tiny_run: Path) -> None:
    assert run(tiny_run, "repair", "--restart", "--set", "repair.methods=[none, bn_adapt]") == 0
    assert run(tiny_run, "report") == 0
    assert "BN-adapted" in (tiny_run / "runs/tiny/report/table.md").read_text()


def test_a_query_set_larger_than_the_clean_images_is_reduced(tiny_run: Path) -> None:
    settings = ["train.query={clean: 1}", "task.query_size=5000", "data.max_train_images=200"]
    assert run(tiny_run, "train", "--restart", *[a for s in settings for a in ("--set", s)]) == 0


def test_half_done_features_of_another_extractor_are_not_resumed(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tiny_run / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), weights)
    features = tiny_run / "runs/tiny/features"
    for manifest in features.glob("*/manifest.json"):
        manifest.unlink()
    other = ["--set", "features.extractor=timm:test_resnet", "--set", f"features.weights={weights}"]
    assert run(tiny_run, "score", *other) == 2
    assert "extractor: deployed -> timm:test_resnet" in capsys.readouterr().err
    assert run(tiny_run, "score", "--restart", *other) == 0
    found = [json.loads(m.read_text())["facts"]["extractor"] for m in features.glob("*/manifest.json")]
    assert found == ["timm:test_resnet"] * 3


@pytest.mark.parametrize("name", ["collect.arrow", "fail.arrow"])
def test_a_flipped_byte_of_a_target_is_refused(
    tiny_run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_run / "runs/tiny/targets/gaussian_noise" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert run(tiny_run, "repair") == 2
    assert "differs from its checksum" in capsys.readouterr().err


def test_pretraining_resumes_only_with_its_own_settings(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--set", "pretrain.batch_size=50", "--set", "name=pre"]
    assert run(tiny_run, "pretrain", *small, "--set", "pretrain.epochs=2") == 0
    folder = tiny_run / "runs/pre/deployed"
    epochs = json.loads((folder / "epochs.json").read_text())
    assert [e["epoch"] for e in epochs] == [1, 2]
    (folder / "manifest.json").unlink()
    assert run(tiny_run, "pretrain", *small, "--set", "pretrain.epochs=3", "--set", "pretrain.rate=0.05") == 2
    assert "pretrain.rate: 0.2 -> 0.05" in capsys.readouterr().err
    assert run(tiny_run, "pretrain", *small, "--set", "pretrain.epochs=2") == 0
    assert json.loads((folder / "epochs.json").read_text()) == epochs

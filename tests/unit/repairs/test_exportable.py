"""Test that what `repair` returns can be saved, exported and reported, and that its card claims only what is known."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from metarepair import RepairConfig, Repaired, repair
from metarepair.models import build_model
from metarepair.models.build import DeployedModel
from metarepair.repairs.export import METADATA
from metarepair.reports.call_card import NOT_JUDGED
from tasks.errors import ConfigError
from tasks.storage.manifest import file_hash

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
HOSTILE = "<script>alert(1)</script>"
QUICK = RepairConfig.model_validate(
    {"repair": {"episodes": 1, "tasks": 1, "rates": [0.01]}, "task": {"shots": 2}}
)


@cache
def net() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet8_cifar", 3).eval()


@cache
def failing() -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(256, size=(30, 32, 32, 3), dtype=np.uint8)
    dnn = DeployedModel(name="net", module=net(), num_classes=3, mean=MEAN, std=STD)
    return images, (dnn.logits(images).argmax(1).numpy() + 1) % 3


@cache
def repaired() -> Repaired:
    images, labels = failing()
    clean = images[:20], (labels[:20] - 1) % 3
    options: dict[str, Any] = {"mean": MEAN, "std": STD, "classes": ["cat", HOSTILE, "=x"]}
    return repair(net(), (images, labels), clean=clean, config=QUICK, **options)


def card_of(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    return card


def test_saved_weights_have_a_card_that_says_that_no_image_judged(tmp_path: Path) -> None:
    path = repaired().save(tmp_path / "own/fixed.safetensors")
    held = load_file(path)
    assert all(value.equal(held[name]) for name, value in repaired().module.state_dict().items())
    card, readme = card_of(path.parent), (path.parent / "README.md").read_text(encoding="utf-8")
    assert card["verdict"] == NOT_JUDGED
    assert card["weights"]["blake2b_128"] == file_hash(path)
    assert card["results"] == {}
    assert "model-index" not in readme
    assert (
        "Validation, 6 images, of the images given as failures, which chose the rate and the episode"
        in readme
    )
    assert "Clean images, 20 images, which nothing was learned from or chosen by: 100.0% right" in readme
    assert HOSTILE not in readme


def test_the_code_of_the_card_loads_a_module_that_the_user_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repaired().save(tmp_path / "fixed.safetensors")
    code = (tmp_path / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {"built": build_model("resnet8_cifar", 3)}
    exec(code.replace("module = ...", "module = built"), found)
    assert all(
        value.equal(repaired().module.state_dict()[key]) for key, value in found["built"].state_dict().items()
    )


@pytest.mark.parametrize("name", ["README.md", "card.json"])
def test_a_file_that_is_no_card_of_these_weights_stays_and_a_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (tmp_path / name).write_text('{"weights": {"file": "others.safetensors"}}', encoding="utf-8")
    before = (tmp_path / name).read_bytes()
    path = repaired().save(tmp_path / "fixed.safetensors")
    assert load_file(path)
    assert [p.name for p in sorted(tmp_path.iterdir())] == sorted([name, "fixed.safetensors"])
    assert (tmp_path / name).read_bytes() == before
    (warning,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert "without a model card" in warning.message


def test_the_card_of_the_same_file_is_made_anew(tmp_path: Path) -> None:
    path = repaired().save(tmp_path / "fixed.safetensors")
    (tmp_path / "card.json").write_text('{"weights": {"file": "fixed.safetensors"}}', encoding="utf-8")
    repaired().save(path)
    assert card_of(tmp_path)["verdict"] == NOT_JUDGED


def test_a_program_gives_the_modules_logits_and_tells_its_classes(tmp_path: Path) -> None:
    path = repaired().export(tmp_path / "fixed.pt2")
    told = {METADATA: ""}
    program = torch.export.load(path, extra_files=told).module()
    x_BCHW = torch.randn(2, 3, 32, 32)
    assert torch.allclose(program(x_BCHW), repaired().module(x_BCHW), atol=1e-5)
    facts = json.loads(told[METADATA])
    assert facts["class_names"] == ["cat", HOSTILE, "=x"]
    assert (facts["mean"], facts["std"]) == (list(MEAN), list(STD))


def test_a_module_of_timm_is_exported_as_a_folder_that_timm_loads(tmp_path: Path) -> None:
    path = repaired().export(tmp_path / "hub", format="hf")
    loaded = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    x_BCHW = torch.randn(2, 3, 32, 32)
    assert torch.allclose(loaded(x_BCHW), repaired().module(x_BCHW), atol=1e-5)
    assert tuple(loaded.pretrained_cfg["label_names"]) == ("cat", HOSTILE, "=x")
    assert card_of(path)["verdict"] == NOT_JUDGED


@pytest.mark.parametrize(
    ("path", "format", "words"),
    [
        ("fixed.onnx", "torch", r"does not end in \.pt2"),
        ("fixed.pt2", "onnx", r"does not end in \.onnx"),
        ("fixed.pth", "original", "is none of torch, onnx, hf"),
    ],
)
def test_a_wrong_format_or_ending_is_refused(tmp_path: Path, path: str, format: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        repaired().export(tmp_path / path, format=format)
    assert list(tmp_path.iterdir()) == []


def test_a_module_given_floats_is_exported_without_a_mean_that_nobody_told(tmp_path: Path) -> None:
    images, labels = failing()
    dnn = DeployedModel(name="net", module=net(), num_classes=3, mean=MEAN, std=STD)
    found = repair(net(), (dnn.normalise(images).numpy(), labels), config=QUICK)
    told = {METADATA: ""}
    torch.export.load(found.export(tmp_path / "fixed.pt2"), extra_files=told)
    assert json.loads(told[METADATA])["mean"] is None
    assert json.loads(told[METADATA])["class_names"] == ["0", "1", "2"]
    found.save(tmp_path / "fixed.safetensors")
    assert "mean and standard deviation were not told" in (tmp_path / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"all images were floats"):
        found.export(tmp_path / "hub", format="hf")
    assert not (tmp_path / "hub").exists()


def test_the_report_says_that_nothing_judged_before_it_shows_validation(tmp_path: Path) -> None:
    page = repaired().report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index("No image judged this repair") < page.index("validation")
    assert "chose the rate and the episode and so prove nothing" in page
    assert "clean images" in page
    assert "No limits were set." in page
    assert "validation has only 6 of the 30 images" in page
    assert f"{repaired().images_seen:,} images went through the model" in page
    with pytest.raises(ConfigError, match=r"does not end in \.html"):
        repaired().report(tmp_path / "report.txt")


def test_the_report_of_a_repair_inside_limits_says_what_was_taken(tmp_path: Path) -> None:
    config = RepairConfig.model_validate(QUICK.model_dump() | {"limits": {"min_gain": 0.0}})
    found = repair(net(), failing(), mean=MEAN, std=STD, config=config)
    page = found.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No limits were set." not in page
    assert "the repair inside the limits and so prove nothing" in page
    assert "What the repair breaks is unknown: no clean images were given" in page
    assert "taken at weight" in page or "the deployed weights are kept" in page

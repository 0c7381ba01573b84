"""A user's own DNN on the command line: a whole run and its exports, and the refusal of unusable DNNs and weights."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from metarepair.cli import main
from metarepair.models import load_deployed
from metarepair.models.weights_file import load_pickle
from metarepair.weights import SHIPPED
from tasks.datasets import dataset_info, load_dataset
from tasks.storage.manifest import file_hash

# The shipped ResNet-8 as a user's own DNN, in a module of the user's folder, with variants that must be refused.
MODULE = """\
import metarepair.models.resnet8 as resnet8
from torch import nn

def net(num_classes):
    return resnet8.ResNet8(num_classes)

def wide(num_classes=1000):
    return resnet8.ResNet8(num_classes, widths=(32, 64, 160))

def thousand():
    return resnet8.ResNet8(1000)

def breaks(num_classes):
    raise RuntimeError("no luck")

def nothing():
    return {"a": "dictionary"}
"""
NET = ("--model", "strange_nets:net")
PREFIX = "module."


def shipped() -> dict[str, Tensor]:
    return load_file(SHIPPED / "resnet8_cifar10.safetensors")


def wrapped() -> dict[str, Any]:
    """The shipped weights as many training programs save them: under `state_dict`, with the data-parallel prefix."""
    return {"best_prec1": 88.8, "state_dict": {PREFIX + k: v for k, v in shipped().items()}}


@pytest.fixture
def folder(tmp_path: Path, tiny_settings: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's folder with a module, a weights file and settings; it is the current directory."""
    (tmp_path / "strange_nets.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "own.yaml").write_text(tiny_settings.replace("name: tiny", "name: own"), encoding="utf-8")
    torch.save(wrapped(), tmp_path / "net.th")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    sys.modules.pop("strange_nets", None)


def run(verb: str, *arguments: str) -> int:
    return main([verb, "--config", "own.yaml", "--storage", "runs", *arguments])


@pytest.mark.slow
def test_a_run_with_a_users_module_equals_a_run_with_the_same_dnn_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run", *NET, "--weights", "net.th") == 0
    said = capsys.readouterr().out
    assert said.count("the prefix 'module.' was left out of the names") == 1
    assert "entry 'state_dict'" in said
    assert "of 64 clean test images" in said
    assert run("run", "--set", "name=named") == 0
    weights = "repaired/gaussian_noise/metarepair/0/model.safetensors"
    own, named = (load_file(f"runs/{name}/{weights}") for name in ("own", "named"))
    assert own.keys() == shipped().keys()
    assert all(torch.equal(own[k], named[k]) for k in own)
    assert (folder / "runs/own/report/index.html").is_file()
    result = json.loads((folder / "runs/own/repaired/gaussian_noise/result.json").read_text())
    given = {key: value for key, value in result["config"]["model"].items() if value is not None}
    defaults = {"stem": "imagenet", "normalisation": "dataset"}
    assert given == {"name": "strange_nets:net", "weights": "net.th", **defaults}
    _assert_exports_match(folder, own, capsys)


def _assert_exports_match(
    folder: Path, repaired: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    """Check both exports of the run: in the format of the original file and as a torch program."""
    assert main(["export", "runs/own", "--format", "original", "--out", "back.th"]) == 0
    content = load_pickle(folder / "back.th")
    assert content["best_prec1"] == 88.8
    assert all(torch.equal(content["state_dict"][PREFIX + k], v) for k, v in repaired.items())
    weights = "runs/own/repaired/gaussian_noise/metarepair/0/model.safetensors"
    assert main(["export", weights, "--format", "torch", "--out", "repaired.pt2"]) == 0
    assert "the same classes on 64 images" in capsys.readouterr().out
    deployed = load_deployed("resnet8_cifar", weights, dataset_info("cifar10_sample"))
    images = load_dataset("cifar10_sample", "test").images(np.arange(5))
    program = torch.export.load(folder / "repaired.pt2").module()
    logits_BK = program(deployed.normalise(images).contiguous())
    assert torch.allclose(logits_BK, deployed.logits(images), atol=1e-4)
    assert main(["export", "runs/own", "--format", "hf", "--out", "hub"]) == 0
    assert load_file(folder / "hub/model.safetensors").keys() == repaired.keys()
    card, own = (
        json.loads((folder / name / "card.json").read_text(encoding="utf-8"))
        for name in ("hub", Path(weights).parent)
    )
    assert card["results"] == own["results"]
    assert card["weights"]["blake2b_128"] == file_hash(folder / "hub/model.safetensors")


def test_a_run_exports_the_formats_in_its_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["--set", "repair.methods=[none, finetune]", "--set", "repair.export=[torch]"]
    assert run("mine", *methods) == 0
    assert run("repair", *methods) == 0
    assert "model.pt2: the same classes on 64 images" in capsys.readouterr().out
    stage = folder / "runs/own/repaired/gaussian_noise"
    assert "finetune/0/model.pt2" in json.loads((stage / "manifest.json").read_text())["files"]


def refused(capsys: pytest.CaptureFixture[str], code: int, says: list[str]) -> None:
    """Check for exit code 2 and one final paragraph on stderr that contains all words of `says`."""
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("metarepair: ")]
    assert (code, len(lines)) == (2, 1), error
    assert error.endswith(lines[0] + "\n")
    for word in says:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("strange_nets", ["no model 'strange_nets' in timm", "module:FACTORY"]),
        ("timm:resnet8_cifr", ["no model 'resnet8_cifr'", "'resnet8_cifar'"]),
        ("strange_nets.py:net", ["there is no module 'strange_nets.py'"]),
        ("./strange_nets.py:net", ["neither a timm name nor an import path", "strange_nets:net"]),
        ("strange_nests:net", ["there is no module 'strange_nests'", "PYTHONPATH", "working_dir"]),
        ("strange_nets:nett", ["has no 'nett'", "did you mean 'net'"]),
        ("strange_nets:MODULE", ["has no 'MODULE'"]),
        ("strange_nets:breaks", ["raised RuntimeError: no luck"]),
        ("strange_nets:nothing", ["returned dict, not a torch.nn.Module"]),
        ("strange_nets:thousand", ["Only the classifier differs", "the file has 10 classes, the DNN 1000"]),
        ("strange_nets:wide", ["of another shape", "stages.2"]),
    ],
)
def test_a_dnn_that_cannot_be_used_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], model: str, says: list[str]
) -> None:
    refused(capsys, run("run", "--model", model, "--weights", "net.th"), says)
    assert not list(folder.glob("runs/own/*"))


def _save(content: Callable[[], Any]) -> Callable[[Path], None]:
    return lambda path: torch.save(content(), path)


def _half(path: Path) -> None:
    torch.save(wrapped(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _reordered() -> dict[str, Any]:
    names = list(dataset_info("cifar10_sample").classes)
    return wrapped() | {"classes": [*names[1:], names[0]]}


def _rolled() -> dict[str, Tensor]:
    tensors = shipped()
    return tensors | {k: tensors[k].roll(3, 0) for k in ("fc.weight", "fc.bias")}


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda _: None, ["net.pth", "no such file"]),
        (lambda path: path.mkdir(), ["net.pth", "is a folder"]),
        (lambda path: path.write_bytes(b""), ["is empty"]),
        (
            lambda path: path.write_bytes(b"<html><title>404</title>"),
            ["is a web page", "Download the file itself"],
        ),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), ["git lfs pull"]),
        (_half, ["truncated or damaged", "Copy it again"]),
        (_save(lambda: wrapped() | {"args": Path("x")}), ["is a pickle", "more than tensors", "torch.save("]),
        (_save(lambda: {"epoch": 3}), ["holds no state dict", "epoch: int"]),
        (_save(lambda: torch.zeros(3)), ["holds Tensor, not tensors by name"]),
        (_save(lambda: {"a": shipped(), "b": shipped()}), ["under a, b; set model.entry"]),
        (
            _save(lambda: {k.replace("stem", "root"): v for k, v in shipped().items()}),
            ["tensors are missing", "first missing: stem.0.weight", "similar in the file: root.0.weight"],
        ),
        (_save(lambda: shipped() | {"fc.bias": torch.full((10,), torch.nan)}), ["fc.bias is not finite"]),
        (_save(_reordered), ["classes in another order", "its class 0 is 'automobile'"]),
        (_save(lambda: wrapped() | {"classes": ["cat", "dog"]}), ["names 2 classes", "the data set has 10"]),
        (_save(_rolled), ["near chance", "another order of the classes"]),
        (
            _save(lambda: {k: v * 0 for k, v in shipped().items()}),
            ["near chance", "100% of the images get the same class", "Check model.weights"],
        ),
    ],
)
def test_weights_that_cannot_be_used_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], write: Callable[[Path], None], says: list[str]
) -> None:
    write(folder / "net.pth")
    refused(capsys, run("run", *NET, "--weights", "net.pth"), says)
    assert not list(folder.glob("runs/own/*"))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.mean=[0.5, 0.5]", ["model.mean"]),
        ("model.std=[0.5, 0, 0.5]", ["model.std", "above 0"]),
        ("model.mean=[123.7, 116.3, 103.5]", ["model.mean", "outside 0..1", "[0.4851, 0.4561, 0.4059]"]),
        ("model.std=[58.4, 57.1, 57.4]", ["model.std", "outside 1/255..1", "[0.229, 0.2239, 0.2251]"]),
        ("model.entry=state_dic", ["no entry 'state_dic'", "'state_dict'"]),
        (
            "model={mean: [1, 0, 1], std: [0.1, 0.1, 0.1]}",
            ["near chance", "set model.mean to [0.4"],
        ),
        ("repair.export=[tensorrt]", ["repair.export", "onnx"]),
    ],
)
def test_invalid_settings_of_the_dnn_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], override: str, says: list[str]
) -> None:
    refused(capsys, run("run", *NET, "--weights", "net.th", "--set", override), says)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("absent", ["absent does not exist"]),
        ("net.th", ["is not in a run's repaired/", "--config FILE"]),
    ],
)
def test_a_path_that_cannot_be_exported_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], what: str, says: list[str]
) -> None:
    refused(capsys, main(["export", what, "--format", "torch", "--out", "x.pt2"]), says)
    assert not (folder / "x.pt2").exists()


def test_any_weights_are_exported_with_a_configuration(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(shipped(), folder / "plain.safetensors")
    arguments = ["plain.safetensors", "--config", "own.yaml", "--format", "torch", "--out", "plain.pt2"]
    assert main(["export", *arguments]) == 0
    assert (folder / "plain.pt2").is_file()


THIRD_PARTY = "METAREPAIR_THIRD_PARTY"


@pytest.mark.full_data
@pytest.mark.slow
@pytest.mark.skipif(
    THIRD_PARTY not in os.environ, reason=f"needs {THIRD_PARTY}, a folder with the published files"
)
@pytest.mark.parametrize(
    ("factory", "file", "accuracy"),
    [("resnet20", "resnet20-12fca82f.th", 0.9173), ("resnet56", "resnet56-4bfd9763.th", 0.9339)],
)
def test_published_cifar_resnets_have_their_published_accuracy(
    monkeypatch: pytest.MonkeyPatch, factory: str, file: str, accuracy: float
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    deployed = load_deployed(
        f"examples.cifar_resnets:{factory}",
        str(Path(os.environ[THIRD_PARTY]) / file),
        dataset_info("cifar10"),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    test = load_dataset("cifar10", "test")
    predicted = deployed.logits(test.images(slice(None))).argmax(1).numpy()
    assert float((predicted == test.labels_N).mean()) == pytest.approx(accuracy, abs=1e-4)


def test_a_small_cifar_resnet_loads_a_file_in_the_published_format(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    shutil.rmtree(folder / "runs", ignore_errors=True)
    path = "examples.cifar_resnets:resnet8"
    first = load_deployed(path, _published(folder, path), dataset_info("cifar10_sample"))
    assert first.notes == (
        "tiny.th: the weights are its entry 'state_dict'; the prefix 'module.' was left out of the names",
    )
    count = sum(p.numel() for p in first.module.parameters())
    assert count == 75_290  # 6n + 2 layers with n = 1; shortcuts have no parameters
    images = load_dataset("cifar10_sample", "test").images(np.arange(3))
    assert first.logits(images).shape == (3, 10)


def _published(folder: Path, path: str) -> str:
    from metarepair.models import build_model

    torch.manual_seed(0)
    state = {PREFIX + k: v for k, v in build_model(path, 10).state_dict().items()}
    torch.save(
        {"state_dict": state, "best_prec1": 0.1}, folder / "tiny.th", _use_new_zipfile_serialization=False
    )
    return str(folder / "tiny.th")

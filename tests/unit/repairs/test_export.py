"""Test that exported programs agree with the DNN, checked on the available images."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

import metarepair.repairs.export
from metarepair.config.load import load_config
from metarepair.console.export import _find_weights, export
from metarepair.methods import RepairedModel
from metarepair.models import save_weights
from metarepair.models.build import DeployedModel
from metarepair.repairs.export import METADATA, equality_images, export_program
from metarepair.weights import SHIPPED
from small import Small
from small import deployed_channels_last as deployed
from tasks.datasets import ArrayDataset
from tasks.errors import ConfigError, UserError

NAMES = ("cat", *"123456789")
ONNX = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs the extra onnx")


class Branching(Small):
    """Its control flow depends on the values of the images."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW if x_BCHW.sum() > 0 else -x_BCHW)


def images(count: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)


def test_a_program_of_torch_export_gives_the_same_logits_for_any_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dnn = deployed(Small())
    found = export_program(dnn, images(), "torch", tmp_path, class_names=NAMES)
    assert found.path == tmp_path / "model.pt2"
    assert found.difference < 1e-5
    assert "the same classes on 8 images" in found.words
    program = torch.export.load(found.path).module()
    for count in (1, 5):
        x_BCHW = dnn.normalise(images(count)).contiguous()
        assert torch.allclose(program(x_BCHW), dnn.module(x_BCHW), atol=1e-5)


def fed_as_told(facts: dict[str, Any], dnn: DeployedModel) -> bool:
    """Whether images that are prepared as a program tells are the DNN's input."""
    assert facts["class_names"] == list(NAMES)
    assert facts["input_size"] == [3, 16, 16]
    mean, std = (torch.tensor(facts[key]).view(3, 1, 1) for key in ("mean", "std"))
    x_BCHW = (torch.from_numpy(images()).permute(0, 3, 1, 2) / 255 - mean) / std
    return torch.allclose(x_BCHW, dnn.normalise(images()), atol=1e-6)


def test_a_program_tells_how_images_are_normalised_and_what_the_classes_are_called(tmp_path: Path) -> None:
    dnn = replace(deployed(Small()), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    found = export_program(dnn, images(), "torch", tmp_path, class_names=NAMES)
    told = {METADATA: ""}
    torch.export.load(found.path, extra_files=told)
    assert fed_as_told(json.loads(told[METADATA]), dnn)


@ONNX
@pytest.mark.slow
def test_a_program_of_onnx_gives_the_same_logits_for_any_batch(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    dnn = deployed(Small())
    found = export_program(dnn, images(), "onnx", tmp_path, class_names=NAMES)
    assert found.difference < 1e-4
    session = onnxruntime.InferenceSession(str(found.path), providers=["CPUExecutionProvider"])
    assert fed_as_told(json.loads(session.get_modelmeta().custom_metadata_map[METADATA]), dnn)
    for count in (1, 5):
        x_BCHW = dnn.normalise(images(count)).contiguous()
        (logits,) = session.run(None, {"images": x_BCHW.numpy()})
        assert torch.allclose(torch.from_numpy(logits), dnn.module(x_BCHW), atol=1e-4)


def test_missing_packages_are_named_with_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        metarepair.repairs.export, "find_spec", lambda name: None if name == "onnxscript" else object()
    )
    with pytest.raises(ConfigError, match=r"not installed \(onnxscript\): pip install 'metarepair\[onnx\]'"):
        export_program(deployed(Small()), images(), "onnx", tmp_path, class_names=NAMES)


def test_a_dnn_that_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"net cannot be exported as torch: torch\.export raised \w+ \("):
        export_program(deployed(Branching()), images(), "torch", tmp_path, class_names=NAMES)
    assert list(tmp_path.iterdir()) == []


def test_a_program_with_other_results_than_the_dnn_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metarepair.repairs.export, "_read_torch", lambda _: lambda x: torch.zeros(len(x), 10))
    with pytest.raises(UserError, match=r"model\.pt2 was not written.*another class for \d of 8 images"):
        export_program(deployed(Small()), images(), "torch", tmp_path, class_names=NAMES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_program_is_checked_on_the_available_images(tmp_path: Path, count: int) -> None:
    torch.manual_seed(0)
    dnn = deployed(Small())
    test = ArrayDataset(
        name="unit",
        split="test",
        images_NHWC=images(count),
        labels_N=np.zeros(count, np.int64),
        image_ids_N=np.arange(count),
        classes=tuple("0123456789"),
    )
    found = export_program(dnn, equality_images(test), "torch", tmp_path, class_names=NAMES)
    assert found.images == count
    program = torch.export.load(found.path).module()
    x_BCHW = dnn.normalise(images(5)).contiguous()
    assert torch.allclose(program(x_BCHW), dnn.module(x_BCHW), atol=1e-5)


def test_at_most_64_images_check_a_program() -> None:
    test: Any = SimpleNamespace(labels_N=np.zeros(70), images=lambda rows: rows)
    assert len(equality_images(test)) == 64


def test_the_configurations_own_file_is_exported_with_its_entry(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file has a tensor outside the DNN, so it is refused without the entry."""
    own = load_file(SHIPPED / "resnet8_cifar10.safetensors")
    path = tmp_path / "net.pth"
    torch.save({f"1.{k}": v for k, v in own.items()} | {"0.mean": torch.zeros(3)}, path)
    config = {
        "name": "unit",
        "mining": {"experiences": ["fog"]},
        "model": {"weights": str(path), "entry": "1."},
        "data": {"max_test_images": 3},
    }
    (tmp_path / "unit.yaml").write_text(json.dumps(config), encoding="utf-8")
    out = str(tmp_path / "net.pt2")
    export(str(path), kind="torch", out=out, config_file=tmp_path / "unit.yaml")
    assert "the same classes on 3 images" in caplog.messages[0]


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        (None, "metarepair/0"),
        ({"method": "sgd", "seed": 1, "kept": False}, "sgd/1"),
        ({"method": "none", "seed": 0, "kept": True}, "no repair was inside the limits"),
    ],
)
def test_of_a_runs_repairs_the_one_that_limits_took_is_exported(
    choice: dict[str, Any] | None, found: str, tmp_path: Path
) -> None:
    target = tmp_path / "run" / "repaired" / "fog"
    for name in ("metarepair/0", "none/0", "sgd/0", "sgd/1"):
        (target / name).mkdir(parents=True)
        (target / name / "model.safetensors").write_text("weights")
    (target / "result.json").write_text(json.dumps({} if choice is None else {"choice": choice}))
    if "/" in found:
        assert _find_weights(tmp_path / "run") == target / found / "model.safetensors"
    else:
        with pytest.raises(ConfigError, match=found):
            _find_weights(tmp_path / "run")


def run_of_one_repair(folder: Path) -> Path:
    """Write the repaired weights of a run, the deployed file, a configuration and the recorded settings."""
    own = (SHIPPED / "resnet8_cifar10.safetensors").read_bytes()
    weights = folder / "run" / "repaired" / "fog" / "finetune" / "0" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(own)
    (folder / "plain.safetensors").write_bytes(own)
    config = {
        "name": "unit",
        "mining": {"experiences": ["fog"]},
        "model": {"weights": str(folder / "plain.safetensors")},
        "data": {"max_test_images": 3},
    }
    (folder / "unit.yaml").write_text(json.dumps(config), encoding="utf-8")
    settings = load_config(folder / "unit.yaml", []).model_dump(mode="json")
    (weights.parents[2] / "result.json").write_text(json.dumps({"config": settings}), encoding="utf-8")
    return weights


@pytest.mark.parametrize("kind", ["torch", "original"])
@pytest.mark.parametrize("link", [None, "symbolic", "hard"])
@pytest.mark.parametrize("which", ["weights", "plain.safetensors", "unit.yaml", "result.json"])
def test_an_export_does_not_replace_what_it_reads(
    tmp_path: Path, which: str, link: str | None, kind: Literal["torch", "original"]
) -> None:
    weights = run_of_one_repair(tmp_path)
    places = {"weights": weights, "result.json": weights.parents[2] / "result.json"}
    out = own = places.get(which, tmp_path / which)
    if link is not None:
        out = tmp_path / "linked"
        out.symlink_to(own) if link == "symbolic" else out.hardlink_to(own)
    before = own.read_bytes()
    settings = tmp_path / "unit.yaml" if which == "unit.yaml" else None
    with pytest.raises(ConfigError, match=r"--out .* is a file that the export reads .*Name another file"):
        export(str(tmp_path / "run"), kind=kind, out=str(out), config_file=settings)
    assert own.read_bytes() == before
    assert out.samefile(own)


@pytest.mark.parametrize("out", ["run/repaired/fog/none/0/model.safetensors", "run/new.pt2", "run/hub"])
def test_an_export_is_not_written_into_the_run(tmp_path: Path, out: str) -> None:
    run_of_one_repair(tmp_path)
    other = tmp_path / "run/repaired/fog/none/0/model.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"another repair")
    kind: Literal["hf", "torch"] = "hf" if out.endswith("hub") else "torch"
    with pytest.raises(ConfigError, match=r"is inside the run .*Name a place outside of it"):
        export(
            str(tmp_path / "run/repaired/fog/finetune/0/model.safetensors"),
            kind=kind,
            out=str(tmp_path / out),
            config_file=None,
        )
    assert other.read_bytes() == b"another repair"
    assert not (tmp_path / "run/hub").exists()


def test_an_older_export_is_replaced(tmp_path: Path) -> None:
    weights = run_of_one_repair(tmp_path)
    out = tmp_path / "back.safetensors"
    out.write_bytes(b"older")
    export(str(weights), kind="original", out=str(out), config_file=None)
    assert load_file(out).keys() == load_file(weights).keys()


@pytest.mark.parametrize("name", ["resnet8_cifar", "resnet10t"])
def test_timm_loads_repaired_weights_by_path(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    module = timm.create_model(name, num_classes=10)
    repaired = RepairedModel(
        method="finetune",
        parameters={k: v.detach() + 0.25 for k, v in module.named_parameters()},
        buffers=dict(module.named_buffers()),
        images_seen=0,
        gradient_steps=0,
    )
    save_weights(tmp_path / "model.safetensors", repaired.fill(module).state_dict(), {"method": "finetune"})
    back = timm.create_model(name, num_classes=10, checkpoint_path=str(tmp_path / "model.safetensors"))
    assert back.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(v, repaired.parameters[k]) for k, v in back.named_parameters())

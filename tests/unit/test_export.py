"""What goes back: programs that say the same as the DNN, and files like the one that it came from."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import metarepair.export
from metarepair.export import export_original, export_program
from metarepair.methods import RepairedModel
from metarepair.models import DeployedModel, save_weights
from metarepair.models.weights_file import load_pickle
from tasks.errors import ConfigError, UserError, WeightsError

ONNX = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs the extra onnx")


class Small(nn.Module):
    """A batch norm, a convolution, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.norm(self.conv(x_BCHW))).mean(dim=(2, 3)))
        return logits


class Branching(Small):
    """Its way depends on the values of the images."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW if x_BCHW.sum() > 0 else -x_BCHW)


def deployed(module: nn.Module) -> DeployedModel:
    module.to(memory_format=torch.channels_last).eval()
    return DeployedModel(name="net", module=module, num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)


def images(count: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)


def test_a_program_of_torch_export_gives_the_same_logits_for_any_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dnn = deployed(Small())
    found = export_program(dnn, images(), "torch", tmp_path)
    assert found.path == tmp_path / "model.pt2"
    assert found.difference < 1e-5
    assert "the same classes on 8 images" in found.words
    program = torch.export.load(found.path).module()
    for count in (1, 5):
        x_BCHW = dnn.normalise(images(count)).contiguous()
        assert torch.allclose(program(x_BCHW), dnn.module(x_BCHW), atol=1e-5)


@ONNX
@pytest.mark.slow
def test_a_program_of_onnx_gives_the_same_logits_for_any_batch(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    dnn = deployed(Small())
    found = export_program(dnn, images(), "onnx", tmp_path)
    assert found.difference < 1e-4
    session = onnxruntime.InferenceSession(str(found.path), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        x_BCHW = dnn.normalise(images(count)).contiguous()
        (logits,) = session.run(None, {"images": x_BCHW.numpy()})
        assert torch.allclose(torch.from_numpy(logits), dnn.module(x_BCHW), atol=1e-4)


def test_missing_packages_are_said_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        metarepair.export, "find_spec", lambda name: None if name == "onnxscript" else object()
    )
    with pytest.raises(ConfigError, match=r"not installed \(onnxscript\): pip install '\.\[onnx\]'"):
        export_program(deployed(Small()), images(), "onnx", tmp_path)


def test_a_dnn_that_cannot_be_exported_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"net cannot be exported as torch.*branches on values"):
        export_program(deployed(Branching()), images(), "torch", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_says_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metarepair.export, "_read_torch", lambda _: lambda x: torch.zeros(len(x), 10))
    with pytest.raises(UserError, match=r"model\.pt2 was not written.*another class for \d of 8 images"):
        export_program(deployed(Small()), images(), "torch", tmp_path)
    assert list(tmp_path.iterdir()) == []


def other_state() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return Small().state_dict()


def test_a_torch_file_comes_back_with_its_prefix_entry_types_and_company(tmp_path: Path) -> None:
    before = {
        f"module.{k}": v.half() if v.is_floating_point() else v for k, v in Small().state_dict().items()
    }
    torch.save({"best": 91.7, "state_dict": before, "epoch": 3}, tmp_path / "net.th")
    words = export_original(other_state(), tmp_path / "net.th", tmp_path / "back.th", entry=None)
    assert "prefix 'module.', entry 'state_dict'" in words
    content = load_pickle(tmp_path / "back.th")
    assert content["best"] == 91.7
    assert content["epoch"] == 3
    assert list(content["state_dict"]) == list(before)
    for key, tensor in other_state().items():
        back = content["state_dict"][f"module.{key}"]
        assert back.dtype == before[f"module.{key}"].dtype
        assert torch.equal(back, tensor.to(back.dtype))


def test_a_safetensors_file_comes_back_with_its_names_and_notes(tmp_path: Path) -> None:
    save_file(Small().state_dict(), tmp_path / "net.safetensors", metadata={"format": "pt"})
    torch.manual_seed(7)
    ran = Small().to(memory_format=torch.channels_last).state_dict()  # as a loaded DNN has it
    words = export_original(ran, tmp_path / "net.safetensors", tmp_path / "back.safetensors", entry=None)
    assert "the same names" in words
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == other_state().keys()
    assert all(torch.equal(back[k], v) for k, v in other_state().items())


def test_names_that_were_mapped_do_not_go_back(tmp_path: Path) -> None:
    save_file({"old.weight": torch.zeros(1)}, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match="its names were mapped"):
        export_original(other_state(), tmp_path / "net.safetensors", tmp_path / "back", entry=None)


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

"""Test that repaired weights can be written in the layout of the file that they came from."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from examples import cifar_resnets
from metarepair.models import DeployedModel
from metarepair.models.fit import load_weights
from metarepair.models.weights_file import load_pickle, read_weights
from metarepair.repairs.export import export_original
from small import Small
from small import deployed_channels_last as deployed
from tasks.errors import WeightsError


def other() -> DeployedModel:
    """A DNN whose weights are in no file of these tests."""
    torch.manual_seed(7)
    return deployed(Small())


def other_state() -> dict[str, Tensor]:
    return other().module.state_dict()


def test_a_torch_file_is_written_back_with_its_prefix_entry_types_and_other_entries(tmp_path: Path) -> None:
    before = {
        f"module.{k}": v.half() if v.is_floating_point() else v for k, v in Small().state_dict().items()
    }
    torch.save({"best": 91.7, "state_dict": before, "epoch": 3}, tmp_path / "net.th")
    words = export_original(other(), tmp_path / "net.th", tmp_path / "back.th", entry=None)
    assert "prefix 'module.', entry 'state_dict', rounded to float16" in words
    content = load_pickle(tmp_path / "back.th")
    assert content["best"] == 91.7
    assert content["epoch"] == 3
    assert list(content["state_dict"]) == list(before)
    for key, tensor in other_state().items():
        back = content["state_dict"][f"module.{key}"]
        assert back.dtype == before[f"module.{key}"].dtype
        assert torch.equal(back, tensor.to(back.dtype))


def test_a_safetensors_file_is_written_back_with_its_names_and_metadata(tmp_path: Path) -> None:
    save_file(Small().state_dict(), tmp_path / "net.safetensors", metadata={"format": "pt"})
    words = export_original(other(), tmp_path / "net.safetensors", tmp_path / "back.safetensors", entry=None)
    assert "the same names" in words
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == other_state().keys()
    assert all(torch.equal(back[k], v) for k, v in other_state().items())


FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", FLOAT8)
def test_a_file_in_8_bits_is_written_back_and_the_rounding_is_reported(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    before = {k: v.to(dtype) if v.is_floating_point() else v for k, v in Small().state_dict().items()}
    torch.save(before, tmp_path / "net.pt")
    words = export_original(other(), tmp_path / "net.pt", tmp_path / "back.pt", entry=None)
    assert f"rounded to {dtype}".replace("torch.", "") in words
    back = load_pickle(tmp_path / "back.pt")
    for key, tensor in other_state().items():
        assert back[key].dtype == before[key].dtype
        assert torch.equal(back[key].float(), tensor.to(before[key].dtype).float())


def test_values_that_were_written_back_exactly_are_not_reported_as_rounded(tmp_path: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in Small().state_dict().items()}
    torch.save(half, tmp_path / "net.pt")
    dnn = deployed(Small())
    load_weights(dnn.module, read_weights(tmp_path / "net.pt"), "net")
    words = export_original(dnn, tmp_path / "net.pt", tmp_path / "back.pt", entry=None)
    assert "(the same names)" in words


def test_a_dnn_in_float64_is_rounded_to_a_file_in_float32(tmp_path: Path) -> None:
    torch.save(Small().state_dict(), tmp_path / "net.pt")
    dnn = other()
    dnn.module.double()
    with torch.no_grad():
        dnn.module.get_parameter("head.bias").add_(1e-12)
    words = export_original(dnn, tmp_path / "net.pt", tmp_path / "back.pt", entry=None)
    assert "(rounded to float32)" in words


def write_form(path: Path, form: Form, own: dict[str, Tensor]) -> None:
    """Write the weights `own` to a file with this layout."""
    kept = {k: v for k, v in own.items() if form.counters or not k.endswith("num_batches_tracked")}
    order = list(reversed(kept)) if form.backwards else list(kept)
    tensors = {
        form.prefix + k: kept[k].to(form.dtype) if kept[k].is_floating_point() else kept[k] for k in order
    }
    if form.average:
        tensors = {"n_averaged": torch.tensor(4), **tensors}
    if form.beside:
        tensors |= {"0.mean": torch.full((1, 3, 1, 1), 0.5)}
    if form.entry == "safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
        return
    torch.save({"epoch": 3, form.entry: tensors, "state_dict_ema": None} if form.entry else tensors, path)


@dataclass(frozen=True)
class Form:
    """The layout of a file of the same weights. If a tensor lies outside the DNN, the prefix is given."""

    prefix: str
    entry: str | None
    dtype: torch.dtype
    counters: bool
    backwards: bool
    beside: bool

    @property
    def average(self) -> bool:
        return self.prefix == "module." and not self.beside and self.backwards

    @property
    def named(self) -> str | None:
        return self.prefix if self.beside else None


FORMS = st.builds(
    Form,
    prefix=st.sampled_from(["", "module.", "model.", "1.", "module.1.", "backbone."]),
    entry=st.sampled_from([None, "state_dict", "model", "teacher", "safetensors"]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    counters=st.booleans(),
    backwards=st.booleans(),
    beside=st.booleans(),
).filter(lambda form: form.prefix or not form.beside)


def content_of(path: Path, form: Form) -> dict[str, Tensor]:
    return dict(read_weights(path, entry=form.named).tensors)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(form=FORMS)
def test_every_form_of_a_file_comes_back_bit_for_bit_and_takes_repaired_tensors(form: Form) -> None:
    with TemporaryDirectory() as folder:
        path, back, repaired = (Path(folder) / name for name in ("own", "back", "repaired"))
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(4)
        own = {
            k: torch.rand(v.shape, generator=generator, dtype=torch.float64)
            if v.is_floating_point()
            else v + 5
            for k, v in Small().state_dict().items()
        }
        write_form(path, form, own)
        dnn = deployed(Small())
        load_weights(dnn.module, read_weights(path, entry=form.named), "net")
        before = content_of(path, form)
        export_original(dnn, path, back, entry=form.named)
        after = content_of(back, form)
        assert (
            list(after) == list(before) or form.entry == "safetensors"
        )  # which sorts by size of type and name
        assert after.keys() == before.keys()
        assert all(after[k].dtype == v.dtype and torch.equal(after[k], v) for k, v in before.items())

        export_original(other(), path, repaired, entry=form.named)
        given = {form.prefix + k: v for k, v in other_state().items()}
        for key, tensor in content_of(repaired, form).items():
            assert tensor.dtype == before[key].dtype
            assert torch.equal(tensor, given[key].to(tensor.dtype) if key in given else before[key])


def test_the_third_party_resnet_of_the_docs_is_written_back_without_counters(tmp_path: Path) -> None:
    """The published file predates torch 0.4.1, and its names have the prefix `module.`."""
    torch.manual_seed(0)
    published = {
        f"module.{k}": v
        for k, v in cifar_resnets.resnet8().state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    torch.save({"state_dict": published, "best_prec1": 91.7}, tmp_path / "resnet.th")
    dnn = deployed(cifar_resnets.resnet8())
    words = export_original(dnn, tmp_path / "resnet.th", tmp_path / "back.th", entry=None)
    assert "prefix 'module.', entry 'state_dict'" in words
    content = load_pickle(tmp_path / "back.th")
    assert content["best_prec1"] == 91.7
    assert list(content["state_dict"]) == list(published)
    for key, tensor in dnn.module.state_dict().items():
        assert f"module.{key}" not in published or torch.equal(content["state_dict"][f"module.{key}"], tensor)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_published_names_are_written_back_if_the_family_map_only_renames(tmp_path: Path, prefix: str) -> None:
    def made(seed: int) -> DeployedModel:
        torch.manual_seed(seed)
        return deployed(
            timm.create_model("convnext_atto", num_classes=3, depths=(1, 1, 1, 1), dims=(4, 4, 8, 8))
        )

    own = made(1).module.state_dict()
    published = {
        prefix + convnext_name(k): v.flatten(2).flatten(1) if v.ndim == 4 and "mlp" in k else v
        for k, v in own.items()
    }
    torch.save({"model": published}, tmp_path / "convnext.pth")
    dnn = made(2)
    (note,) = load_weights(dnn.module, read_weights(tmp_path / "convnext.pth"), "convnext")
    assert "first publication" in note
    assert all(torch.equal(v, own[k]) for k, v in dnn.module.state_dict().items())
    export_original(dnn, tmp_path / "convnext.pth", tmp_path / "back.pth", entry=None)
    back = load_pickle(tmp_path / "back.pth")["model"]
    assert list(back) == list(published)
    assert all(torch.equal(back[k], v) for k, v in published.items())
    repaired = made(3)
    export_original(repaired, tmp_path / "convnext.pth", tmp_path / "repaired.pth", entry=None)
    load_weights(dnn.module, read_weights(tmp_path / "repaired.pth"), "convnext")
    assert all(torch.equal(v, dnn.module.state_dict()[k]) for k, v in repaired.module.state_dict().items())


def convnext_name(key: str) -> str:
    """Return the authors' name for a tensor of timm's ConvNeXt."""
    key = key.replace("stem.", "downsample_layers.0.").replace(".conv_dw.", ".dwconv.")
    key = re.sub(r"stages\.([0-9]+)\.downsample\.([0-9]+)", r"downsample_layers.\1.\2", key)
    key = re.sub(r"stages\.([0-9]+)\.blocks\.([0-9]+)", r"stages.\1.\2", key)
    key = key.replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
    return key.replace("head.norm.", "norm.").replace("head.fc.", "head.")


def doubled(tensors: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    return {k.replace("old.", ""): 2 * v if k == "old.head.bias" else v for k, v in tensors.items()}


def test_tensors_computed_by_a_family_map_are_not_written_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, Small.__module__, SimpleNamespace(checkpoint_filter_fn=doubled))  # type: ignore[arg-type]
    names = {k if k.startswith("conv") else f"old.{k}": v for k, v in Small().state_dict().items()}
    save_file(names, tmp_path / "net.safetensors")
    with pytest.raises(
        WeightsError, match=r"cannot be written back: head\.bias \(1 such tensors\).*map.*no inverse"
    ):
        export_original(other(), tmp_path / "net.safetensors", tmp_path / "back", entry=None)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("dtype", [torch.float16, *FLOAT8])
def test_repaired_values_that_a_file_of_few_bits_cannot_hold_are_refused(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in Small().state_dict().items()}
    torch.save(half, tmp_path / "half.pth")
    dnn = other()
    with torch.no_grad():
        dnn.module.get_parameter("head.bias").fill_(1e6)
    with pytest.raises(
        WeightsError, match=rf"its head\.bias is {dtype}, and the repaired values are too large"
    ):
        export_original(dnn, tmp_path / "half.pth", tmp_path / "back.pth", entry=None)

"""Test the reading of weights files in common layouts, without executing code, and their matching by name."""

from __future__ import annotations

import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from metarepair.models import weights_file
from metarepair.models.build import read_tensors, save_weights, state_hash
from metarepair.models.fit import fit, load_weights
from metarepair.models.weights_file import read_weights
from tasks.datasets import bounded
from tasks.errors import WeightsError
from watchdog import watched


class Net(nn.Module):
    """A classifier of ten classes with a batch norm."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, classes)


def state(seed: int = 1, classes: int = 10) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    own = Net(classes).state_dict()
    return {
        k: torch.rand(v.shape, generator=generator) if v.is_floating_point() else v for k, v in own.items()
    }


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return OrderedDict((prefix + k, v) for k, v in tensors.items())


def saved(path: Path, content: Any, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def holds(module: nn.Module, wanted: dict[str, Tensor]) -> bool:
    return all(torch.equal(v, wanted[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("wrap", "entry", "says"),
    [
        (lambda s: s, None, []),
        (lambda s: {"state_dict": s, "best": 91.7}, None, ["entry 'state_dict'"]),
        (lambda s: {"model": s, "epoch": 3}, None, ["entry 'model'"]),
        (lambda s: {"teacher": s, "epoch": 3}, None, ["entry 'teacher'"]),
        (
            lambda s: {"state_dict": prefixed(s, "module.")},
            None,
            ["entry 'state_dict'", "prefix 'module.' was left out"],
        ),
        (lambda s: prefixed(s, "module._orig_mod."), None, ["prefix 'module._orig_mod.' was left out"]),
        (lambda s: {"state_dict": state(2), "state_dict_ema": s}, None, ["EMA", "'state_dict' as well"]),
        (lambda s: {"model": state(2), "model_ema": prefixed(s, "module.")}, None, ["'model_ema'", "EMA"]),
        (lambda s: {"state_dict": s, "state_dict_ema": state(2)}, "state_dict", ["entry 'state_dict'"]),
        (
            lambda s: {"n_averaged": torch.tensor(9), **prefixed(s, "module.")},
            None,
            ["AveragedModel", "'module.'"],
        ),
    ],
)
def test_the_dict_around_the_tensors_is_detected_and_noted(
    tmp_path: Path, wrap: Any, entry: str | None, says: list[str], legacy: bool
) -> None:
    path, module = saved(tmp_path / "net.th", wrap(state()), legacy=legacy), Net()
    notes = load_weights(module, read_weights(path, entry=entry), "net")
    assert holds(module, state())
    assert len(notes) == bool(says)
    for word in says:
        assert word in notes[0]


def test_a_safetensors_file_is_known_by_its_bytes_and_needs_no_note(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "net.bin")
    module = Net()
    assert load_weights(module, read_weights(tmp_path / "net.bin"), "net") == ()
    assert holds(module, state())


@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_file_is_known_by_its_bytes_whatever_its_suffix(tmp_path: Path, legacy: bool) -> None:
    module = Net()
    file = read_weights(saved(tmp_path / "net.safetensors", state(), legacy=legacy))
    assert file.container == "torch"
    assert load_weights(module, file, "net") == ()
    assert holds(module, state())


@pytest.mark.parametrize("length", [0x0480, 0x4B50])
def test_a_safetensors_file_whose_length_begins_like_a_pickle_or_a_zip_is_read(
    tmp_path: Path, length: int
) -> None:
    save_file(state(), tmp_path / "net.bin")
    content = (tmp_path / "net.bin").read_bytes()
    own = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + own].ljust(length)
    (tmp_path / "net.bin").write_bytes(length.to_bytes(8, "little") + header + content[8 + own :])
    module = Net()
    load_weights(module, read_weights(tmp_path / "net.bin"), "net")
    assert holds(module, state())


def test_a_prefix_that_the_dnns_own_names_have_is_kept(tmp_path: Path) -> None:
    module = nn.DataParallel(Net())
    file = read_weights(saved(tmp_path / "net.pt", prefixed(state(), "module.")))
    assert load_weights(module, file, "net") == ()
    assert holds(module.module, state())


def test_a_file_without_batch_norm_counters_is_taken(tmp_path: Path) -> None:
    old = {k: v for k, v in state().items() if not k.endswith("num_batches_tracked")}
    module = Net()
    load_weights(module, read_weights(saved(tmp_path / "old.pth", old)), "net")
    assert holds(module, state())


WRAPPERS = (
    "",
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "backbone.",
    "encoder.",
    "1.",
    "module.1.",
    "a.b.c.",
)


@pytest.mark.parametrize("counters", [True, False])
@pytest.mark.parametrize("prefix", WRAPPERS)
def test_a_prefix_common_to_all_tensors_is_removed_and_noted(
    tmp_path: Path, prefix: str, counters: bool
) -> None:
    kept = {k: v for k, v in state().items() if counters or not k.endswith("num_batches_tracked")}
    file, module = read_weights(saved(tmp_path / "net.ckpt", {"state_dict": prefixed(kept, prefix)})), Net()
    (note,) = load_weights(module, file, "net")
    assert holds(module, state())
    assert (f"the prefix '{prefix}' was left out" in note) == bool(prefix)
    assert fit(module, file, "net").names == {k: prefix + k for k in kept}


def test_a_lightning_checkpoint_is_accepted_with_its_other_entries(tmp_path: Path) -> None:
    content = {
        "epoch": 3,
        "state_dict": prefixed(state(), "model."),
        "loops": {},
        "hyper_parameters": {"lr": 0.1},
    }
    module = Net()
    (note,) = load_weights(module, read_weights(saved(tmp_path / "net.ckpt", content)), "net")
    assert "the prefix 'model.' was left out" in note
    assert holds(module, state())


def test_an_empty_entry_for_averaged_weights_is_skipped(tmp_path: Path) -> None:
    content = {"state_dict": prefixed(state(), "module."), "state_dict_ema": None}
    module = Net()
    load_weights(module, read_weights(saved(tmp_path / "net.pth", content)), "net")
    assert holds(module, state())


def test_tensors_beside_the_prefix_are_refused_until_the_prefix_is_named(tmp_path: Path) -> None:
    """A normaliser in front of the DNN changes its images, so it is never left out silently."""
    content = {"0.mean": torch.zeros(1, 3, 1, 1), **prefixed(state(), "1."), "0.std": torch.ones(1, 3, 1, 1)}
    path, module = saved(tmp_path / "net.pth", content), Net()
    says = r"0 tensors are missing, 2 unexpected.*first unexpected: 0\.mean.*Set model\.entry to '1\.'"
    with pytest.raises(WeightsError, match=says):
        fit(module, read_weights(path), "net")
    (note,) = load_weights(module, read_weights(path, entry="1."), "net")
    assert "2 tensors without the prefix are not used (0.mean, 0.std)" in note
    assert holds(module, state())


def test_the_named_prefix_selects_one_of_two_dnns_in_a_file(tmp_path: Path) -> None:
    save_file(prefixed(state(2), "student.") | prefixed(state(), "teacher."), tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match=r"9 unexpected.*Set model\.entry to 'student\.'"):
        fit(Net(), read_weights(tmp_path / "net.safetensors"), "net")
    module = Net()
    load_weights(module, read_weights(tmp_path / "net.safetensors", entry="teacher."), "net")
    assert holds(module, state())
    with pytest.raises(
        WeightsError, match=r"is a prefix of names, and no tensor in .* has it\. The first name is "
    ):
        read_weights(tmp_path / "net.safetensors", entry="expert.")


def test_tensors_split_over_two_prefixes_count_as_missing(tmp_path: Path) -> None:
    halves = {("a." if k.startswith("conv") else "b.") + k: v for k, v in state().items()}
    with pytest.raises(
        WeightsError, match=r"2 tensors are missing, 2 unexpected.*conv\.weight.*with or without one prefix"
    ):
        fit(Net(), read_weights(saved(tmp_path / "net.pth", halves)), "net")


def test_the_map_of_a_family_takes_its_published_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def published(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        return {k.replace("fc.", "head."): v for k, v in tensors.items()}

    monkeypatch.setattr(f"{__name__}.checkpoint_filter_fn", published, raising=False)
    monkeypatch.setitem(__import__("sys").modules, Net.__module__, __import__("sys").modules[__name__])
    old = {k.replace("head.", "fc."): v for k, v in state().items()}
    module = Net()
    (note,) = load_weights(module, read_weights(saved(tmp_path / "old.pth", old)), "net")
    assert "first publication" in note
    assert holds(module, state())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda s: {k.replace("norm", "bn"): v for k, v in s.items()},
            r"4 tensors are missing, 5 unexpected.*first missing: norm\.weight, similar in the file: bn\.",
        ),
        (
            lambda s: s | {"heads.bias": s["head.bias"]},
            r"1 unexpected.*heads\.bias, similar in the DNN: head\.bias",
        ),
        (
            lambda s: s | {"conv.weight": s["conv.weight"][:, :, :1]},
            r"1 of another shape \(first: conv\.weight is 4×3×1×3 in the file and 4×3×3×3 in the DNN",
        ),
        (
            lambda _: state(classes=1000),
            r"Only the classifier differs \(head\.weight, head\.bias\): the file has 1000 classes, the DNN 10 ",
        ),
        (lambda s: s | {"head.bias": s["head.bias"] * float("nan")}, r"head\.bias is not finite"),
        (
            lambda s: {k: v.int() for k, v in s.items()},
            r"conv\.weight holds whole numbers in the file \(torch\.int32\) and floating-point numbers in the DNN "
            r"\(torch\.float32\); 8 such tensors",
        ),
        (
            lambda s: s | {"head.bias": s["head.bias"] > 0.5},
            r"head\.bias holds whole numbers in the file \(torch\.bool\).*; 1 such",
        ),
        (
            lambda s: s | {"head.bias": s["head.bias"].to(torch.complex64)},
            r"head\.bias holds complex numbers in the file \(torch\.complex64\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: Any, says: str) -> None:
    file = read_weights(saved(tmp_path / "net.pt", change(state())))
    with pytest.raises(WeightsError, match=says):
        fit(Net(), file, "net")


def test_an_integer_buffer_needs_integers(tmp_path: Path) -> None:
    module = Net()
    module.register_buffer("order", torch.arange(3))
    good = state() | {"order": torch.tensor([2, 1, 0], dtype=torch.int32)}
    load_weights(module, read_weights(saved(tmp_path / "good.pt", good)), "net")
    assert module.get_buffer("order").tolist() == [2, 1, 0]
    bad = read_weights(saved(tmp_path / "bad.pt", good | {"order": torch.tensor([0.5, 1.5, 2.5])}))
    with pytest.raises(
        WeightsError, match=r"order holds floating-point numbers .* and whole numbers in the DNN"
    ):
        fit(module, bad, "net")


def test_counters_that_were_averaged_with_the_weights_are_taken(tmp_path: Path) -> None:
    averaged = {k: v.float() for k, v in state().items()}
    module = Net()
    load_weights(module, read_weights(saved(tmp_path / "net.pt", averaged)), "net")
    assert holds(module, state())


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # torch's, of a beta state of these layouts
@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")  # torch's, of its deprecation
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v.to_sparse(), r"not dense but of the layout torch\.sparse_coo"),
        (lambda v: v.to_sparse_csr(), r"not dense but of the layout torch\.sparse_csr"),
        (lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), r"quantised, as torch\.qint8"),
        (lambda v: v.to("meta"), "a meta tensor, which has no values"),
        (lambda v: v.to(torch.float8_e8m0fnu), r"quantised, as torch\.float8_e8m0fnu"),
        (lambda v: v.byte().view(torch.float4_e2m1fn_x2), r"quantised, as torch\.float4_e2m1fn_x2"),
        (lambda _: torch.zeros(1).expand(10**11), "of 400,000,000,000 bytes, far more than the file has"),
    ],
)
def test_a_tensor_without_plain_values_is_refused_with_its_name(
    tmp_path: Path, change: Any, says: str
) -> None:
    content = state() | {"head.weight": change(state()["head.weight"])}
    with pytest.raises(WeightsError, match=rf"head\.weight is {says} \(1 such tensors\)"):
        read_weights(saved(tmp_path / "net.pt", {"state_dict": content}))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        (b"\n  <html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
        (b"\x1f\x8b\x08\x00rest", "gunzip"),
        (b"weights, honestly", "neither a safetensors file nor one of torch.save"),
        (b"\x80\x04\x95 and then nothing", "is a pickle.*objects that torch.save does not write"),
        (b"PK\x03\x04 and then nothing", "truncated or damaged"),
    ],
)
def test_a_file_that_is_no_weights_file_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=says):
        read_weights(tmp_path / "net.pth")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_a_truncated_file_is_reported_as_damaged(tmp_path: Path, legacy: bool, share: float) -> None:
    path = saved(tmp_path / "net.pth", {"state_dict": state()}, legacy=legacy)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(WeightsError, match=r"net\.pth.*truncated or damaged.*Copy it again"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "holds list, not tensors by name"),
        ({"epoch": 3, "best": 0.9}, "holds no state dict.*best: float"),
        ({}, "holds no state dict"),
        ({"generator": state(), "discriminator": state()}, "under generator, discriminator; set model.entry"),
        (Net(), r"is a pickle.*more than tensors \(.*Net\).*torch\.save\(model\.state_dict"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        read_weights(saved(tmp_path / "net.pt", content))


def test_a_missing_entry_is_refused_with_the_existing_ones(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", {"state_dict": state(), "epoch": 1})
    with pytest.raises(
        WeightsError, match=re.escape("no entry 'state_dic' with tensors; did you mean 'state_dict'?")
    ):
        read_weights(path, entry="state_dic")
    save_file(state(), tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match="has no entries"):
        read_weights(tmp_path / "net.safetensors", entry="state_dict")


def test_names_of_classes_are_read_in_the_order_of_the_logits(tmp_path: Path) -> None:
    by_list = saved(tmp_path / "a.pt", {"state_dict": state(), "classes": ["cat", "dog"]})
    by_number = saved(tmp_path / "b.pt", {"state_dict": state(), "class_to_idx": {"dog": 1, "cat": 0}})
    save_file(state(), tmp_path / "c.safetensors", metadata={"classes": '["cat", "dog"]'})
    for path in (by_list, by_number, tmp_path / "c.safetensors"):
        assert read_weights(path).classes == ("cat", "dog")
    assert read_weights(saved(tmp_path / "d.pt", state())).classes is None


def test_tensors_that_a_run_writes_are_read_bit_for_bit_and_in_order(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    written = {str(dtype): (100 * values.abs()).to(dtype) for dtype in dtypes}
    written |= {"a scalar": torch.tensor(float("nan")), "none": torch.empty(0, 3), "last": values.mT}
    save_weights(tmp_path / "w.safetensors", written, {"model": "net"})
    found = read_tensors(tmp_path / "w.safetensors")
    assert list(found) == sorted(written)
    for name, tensor in written.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
    assert state_hash(found) == state_hash(written)  # compare bytes: NaN does not equal itself
    save_weights(tmp_path / "empty.safetensors", {}, {})
    assert read_tensors(tmp_path / "empty.safetensors") == {}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"<html>", "is a web page"),
        (b"weights, honestly", "is not a whole safetensors file.*Copy it again"),
        (b"\x80\x04\x95 and then nothing", "is a pickle.*refused"),
    ],
)
def test_a_damaged_file_of_a_run_is_refused_in_the_same_words(
    tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=says):
        read_tensors(path)
    path.unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read"):
        read_tensors(path)


class Costly:
    """Pickles as the call `bytearray(10**11)`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10**11,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_asks_for_much_memory_is_refused(tmp_path: Path, legacy: bool) -> None:
    path = saved(tmp_path / "net.pt", state() | {"more": Costly()}, legacy=legacy)
    with watched() as watch, pytest.raises(WeightsError, match="asks for a bytearray"):
        read_weights(path)
    assert watch.grown_bytes < 1 << 28


@pytest.mark.parametrize("tensors", [1, 4])
def test_an_archive_of_zeros_that_would_fill_the_memory_is_refused(
    tmp_path: Path, tensors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_bytes = 1 << 24  # less than the real one, which takes seconds to pack
    for module in (bounded, weights_file):
        monkeypatch.setattr(module, "ALWAYS_BYTES", always_bytes)
    zeros = {f"head.{n}": torch.zeros(2 * always_bytes // tensors // 4) for n in range(tensors)}
    path = saved(tmp_path / "plain.pt", zeros)
    with (
        zipfile.ZipFile(path) as plain,
        zipfile.ZipFile(tmp_path / "net.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with watched() as watch, pytest.raises(WeightsError, match="pack it without compression"):
        read_weights(tmp_path / "net.pt")
    assert watch.grown_bytes < 4 * always_bytes

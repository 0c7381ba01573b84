"""Read the tensors of any weights file, a user's or a run's, and what they were wrapped in; no code of it is run.

Safetensors files are read, and torch.save files by torch's `weights_only` unpickler: tensors and plain containers,
nothing else. The first bytes of a file tell which of the two it is, not its name.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tasks.errors import WeightsError, near_names
from tasks.storage.paths import Place, local

# Where training programs keep a state dict, averages first: what was averaged is what was meant to be deployed
# (timm's loader takes them in this order as well).
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
ENTRIES = (*AVERAGES, "state_dict", "model_state_dict", "model", "net", "module", "weights")
CLASS_ENTRIES = ("classes", "class_names", "class_to_idx")

# Formats in which a number is not one element: two in a byte, and exponents without sign that scale others.
PACKED = (torch.float4_e2m1fn_x2, torch.float8_e8m0fnu)

Container = Literal["safetensors", "torch"]


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """What a weights file holds.

    content: all that a torch.save file holds; the notes of a safetensors file, None where it has none.
    entry: where the tensors were in it, None where they are all of it. under: the prefix that was asked for, behind
    which the DNN's tensors are; None where it is to be found.
    """

    path: Place
    container: Container
    tensors: dict[str, Tensor]
    content: Any
    entry: str | None = None
    under: str | None = None
    entries: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None

    @property
    def averaged(self) -> bool:
        return self.entry in AVERAGES


def read_weights(path: Place, *, entry: str | None = None) -> WeightsFile:
    """The tensors of a .safetensors or torch.save file, on the CPU.

    entry: of a torch.save file, where the tensors are; with a dot at its end, of any file, the prefix of the names to
    take. Raises WeightsError for anything else than tensors with plain values: a pickle that asks for more, a web page,
    half a file, sparse tensors.
    """
    under = entry if entry is not None and entry.endswith(".") else None
    file = _read_file(path, None if under else entry)
    if under is not None and not any(key.startswith(under) for key in file.tensors):
        raise WeightsError(
            f"model.entry={under!r} ends with a dot, so it is a prefix of names, and no tensor in {path} has it. The "
            f"first name is {next(iter(file.tensors), 'none')!r}."
        )
    _refuse_without_plain_values(file)
    return replace(file, under=under)


def _refuse_without_plain_values(file: WeightsFile) -> None:
    found = {key: form for key, tensor in file.tensors.items() if (form := _other_form(tensor)) is not None}
    if found:
        key, form = next(iter(found.items()))
        raise WeightsError(
            f"{file.path}: {key} is {form} ({len(found)} such tensors). A weights file must hold each tensor dense and "
            "not quantised, with its values. Save the state dict of the DNN in floating point."
        )


def _other_form(tensor: Tensor) -> str | None:
    """How a tensor is held if its elements are not simply its values; None if they are."""
    if tensor.is_quantized or tensor.dtype in PACKED:
        return f"quantised, as {tensor.dtype}"
    if tensor.is_meta:
        return "a meta tensor, which has no values"
    if tensor.layout != torch.strided:
        return f"not dense but of the layout {tensor.layout}"
    return None


def _read_file(path: Place, entry: str | None) -> WeightsFile:
    if _container(path) == "safetensors":
        if entry is not None:
            raise WeightsError(
                f"model.entry={entry!r}, but {path} is a safetensors file, which has no entries; leave model.entry out."
            )
        return _read_safetensors(path)
    content = load_pickle(path)
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{path} holds {type(content).__name__}, not tensors by name. Save `model.state_dict()` instead."
        )
    found = _entry(path, content, entry)
    tensors = _tensors(path, content if found is None else content[found])
    return WeightsFile(
        path=path,
        container="torch",
        tensors=tensors,
        content=content,
        entry=found,
        entries=tuple(k for k in content if _is_state(content[k])),
        classes=_classes(content),
    )


def load_pickle(path: Place) -> Any:
    """All that a torch.save file holds, read with weights_only. Raises WeightsError with the reason it cannot be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that torch does not expect
            # As a stream: given a path that ends in .safetensors, torch.load reads no file of its own format.
            with local(path).open("rb") as stream:
                return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes the unpickler raises whatever they lead it to
        said = " ".join(str(error).split())
        asked = re.search(r"GLOBAL (\S+)", said)
        # An operand that torch never writes: the file is pickle's own, and what it would do is not read any further.
        if asked or "TorchScript" in said or "Unsupported operand" in said:
            other = (
                "a TorchScript program" if "TorchScript" in said else "objects that torch.save does not write"
            )
            what = asked[1].rstrip(".,") if asked else other
            raise WeightsError(
                f"{path} is a pickle (torch.save) that holds more than tensors ({what}), and such a file can run code "
                "when it is read: refused. Where you trust it, save the tensors alone: "
                "torch.save(model.state_dict(), …), or safetensors.torch.save_file(model.state_dict(), …)."
            ) from error
        if _head(path).startswith(b"PK") and zipfile.is_zipfile(local(path)):
            raise WeightsError(
                f"{path} is a zip archive, but none of torch.save ({said[:120]}). Give a file with a state dict."
            ) from error
        raise WeightsError(
            f"{path} is truncated or damaged ({type(error).__name__}: {said[:120]}), or no file of torch.save. "
            "Copy it again."
        ) from error


def _head(path: Place) -> bytes:
    with local(path).open("rb") as stream:
        return stream.read(512)


def _container(path: Place) -> Container:
    try:
        head = _head(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error}). Give a file with weights.") from error
    # First, for the length may begin like one of the others. The format's header has at most 100 MB.
    if head[8:9] == b"{" and head[4:8] == bytes(4):
        return "safetensors"
    if head[:2] == b"PK" or (head[:1] == b"\x80" and head[1:2] <= b"\x05"):  # a zip, or protocols 2 to 5
        return "torch"
    kind = _other_kind(head)
    if path.suffix == ".safetensors" and kind is None:
        return "safetensors"
    raise WeightsError(
        f"{path} "
        + (kind or "is neither a safetensors file nor one of torch.save. Give a file with a state dict.")
    )


def _other_kind(head: bytes) -> str | None:
    """What else the file is, and what to do; None where its first bytes do not tell."""
    if not head:
        return "is empty. Copy it again."
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<")):
        return "is a web page (HTML or XML), not weights. Download the file itself."
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights themselves. Fetch them: `git lfs pull`."
    if head.startswith(b"\x1f\x8b"):
        return "is packed with gzip. Unpack it: gunzip FILE."
    return None


def _read_safetensors(path: Place) -> WeightsFile:
    try:
        with safe_open(local(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  safe_open is no mapping
            notes = file.metadata()
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error}). Copy it again.") from error
    try:
        names = json.loads((notes or {}).get("classes", "null"))
    except ValueError:
        names = None
    classes = _classes({"classes": names})
    return WeightsFile(path=path, container="safetensors", tensors=tensors, content=notes, classes=classes)


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _entry(path: Place, content: Mapping[Any, Any], wanted: str | None) -> str | None:
    """The entry to take: the wanted one, or the first of the usual ones; None where the file is a state dict itself."""
    states = [key for key in content if isinstance(key, str) and _is_state(content[key])]
    if wanted is not None:
        if wanted not in states:
            raise WeightsError(
                f"{path} has no entry {wanted!r} with tensors{near_names(wanted, states) or '.'} "
                f"Such entries are: {', '.join(states) or 'none'} (model.entry)."
            )
        return wanted
    if not states:
        return None
    usual = next((key for key in ENTRIES if key in states), None)
    if usual is None and len(states) > 1:
        raise WeightsError(
            f"{path} holds tensors under {', '.join(states)}; set model.entry to the one that is the DNN."
        )
    return usual or states[0]


def _tensors(path: Place, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    if not _is_state(state):
        kinds = sorted({f"{k}: {type(v).__name__}" for k, v in state.items()})[:5]
        raise WeightsError(
            f"{path} holds no state dict, alone or under {', '.join(ENTRIES)}; it has {'; '.join(kinds) or 'nothing'}. "
            "Save `model.state_dict()`."
        )
    return {key: tensor.detach() for key, tensor in state.items()}


def _classes(content: Mapping[Any, Any]) -> tuple[str, ...] | None:
    """Names of the classes in the order of the logits, where the file tells them."""
    for key in CLASS_ENTRIES:
        names = content.get(key)
        if isinstance(names, Mapping) and all(isinstance(i, int) for i in names.values()):
            names = sorted(names, key=names.__getitem__)
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None

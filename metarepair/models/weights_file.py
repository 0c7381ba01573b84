"""Read the tensors of a weights file, a user's or a run's, without running any code that it contains.

Safetensors and torch.save files are read, the latter by torch's `weights_only` unpickler, which loads only tensors and
plain containers. The format is recognised by the first bytes of the file, not by its name.
"""

from __future__ import annotations

import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tasks.datasets.bounded import ALWAYS_BYTES, RATIO, check_archive, read_member
from tasks.errors import WeightsError, near_names
from tasks.storage.paths import Place, local, parse_json, require_regular, size_of

# Entries under which training programs save a state dict, averages first, since an average is made to be deployed
# (timm's loader takes them in this order as well).
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
ENTRIES = (*AVERAGES, "state_dict", "model_state_dict", "model", "net", "module", "weights")
CLASS_ENTRIES = ("classes", "class_names", "class_to_idx")

# Types whose elements are not single numbers: two numbers in a byte, and exponents that scale other tensors.
PACKED = (torch.float4_e2m1fn_x2, torch.float8_e8m0fnu)

Container = Literal["safetensors", "torch"]


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """The content of a weights file.

    content: everything in a torch.save file; the metadata of a safetensors file, None if it has none. entry: the entry
    that held the tensors, None if the file is the state dict itself. under: the prefix of the DNN's names that was
    asked for, None if it is to be found.
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
    """Read the tensors of a safetensors or torch.save file, on the CPU.

    entry: the entry of a torch.save file that holds the tensors; with a dot at its end, the prefix of the names to
    take, of any file. Raises WeightsError for anything but tensors with plain values, such as a pickle of other
    objects, a web page, a truncated file, or sparse tensors.
    """
    under = entry if entry is not None and entry.endswith(".") else None
    file = _read_file(path, None if under else entry)
    if under is not None and not any(key.startswith(under) for key in file.tensors):
        raise WeightsError(
            f"model.entry={under!r} ends with a dot, so it is a prefix of names, and no tensor in {path} has it. The "
            f"first name is {next(iter(file.tensors), 'none')!r}. Set model.entry to a prefix of such names."
        )
    _refuse_without_plain_values(file)
    return replace(file, under=under)


def _refuse_without_plain_values(file: WeightsFile) -> None:
    limit = max(ALWAYS_BYTES, RATIO * (size_of(file.path) or 0))
    found = {
        key: form for key, tensor in file.tensors.items() if (form := _other_form(tensor, limit)) is not None
    }
    if found:
        key, form = next(iter(found.items()))
        raise WeightsError(
            f"{file.path}: {key} is {form} ({len(found)} such tensors). The tensors of a weights file must be dense, "
            "not quantised, and have values. Save the state dict of the DNN in floating point."
        )


def _other_form(tensor: Tensor, limit: int) -> str | None:
    """Describe the form of a tensor whose elements are not plain values of the file; None if they are.

    limit: bytes that a tensor may have.
    """
    if tensor.is_quantized or tensor.dtype in PACKED:
        return f"quantised, as {tensor.dtype}"
    if tensor.is_meta:
        return "a meta tensor, which has no values"
    if tensor.layout != torch.strided:
        return f"not dense but of the layout {tensor.layout}"
    if tensor.nbytes > limit:
        return f"of {tensor.nbytes:,} bytes, far more than the file has"
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
    """Return everything in a torch.save file, read with weights_only. Raises WeightsError with the reason."""
    _refuse_costly(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols that torch does not expect
            # As a stream: torch.load refuses a path that ends in .safetensors even if the file is in its own format.
            with local(path).open("rb") as stream:
                return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes the unpickler may raise anything
        said = " ".join(str(error).split())
        asked = re.search(r"GLOBAL (\S+)", said)
        # torch never writes an unsupported operand, so this is a plain pickle, which is not read any further.
        if asked or "TorchScript" in said or "Unsupported operand" in said:
            other = (
                "a TorchScript program" if "TorchScript" in said else "objects that torch.save does not write"
            )
            what = asked[1].rstrip(".,") if asked else other
            raise WeightsError(
                f"{path} is a pickle (torch.save) that holds more than tensors ({what}). It is refused, since reading "
                "such a file can run code. If you trust it, save only the tensors: "
                "torch.save(model.state_dict(), …), or safetensors.torch.save_file(model.state_dict(), …)."
            ) from error
        if _head(path).startswith(b"PK") and zipfile.is_zipfile(local(path)):
            raise WeightsError(
                f"{path} is a zip archive, but not one of torch.save ({said[:120]}). Give a file with a state dict."
            ) from error
        raise WeightsError(
            f"{path} is truncated or damaged ({type(error).__name__}: {said[:120]}), or not a torch.save file. "
            "Copy it again."
        ) from error


def _refuse_costly(path: Place) -> None:
    """Raise WeightsError if reading a torch.save file would take far more memory than its size."""
    here = require_regular(local(path))
    try:
        if zipfile.is_zipfile(here):
            with zipfile.ZipFile(here) as archive:
                check_archive(archive)
                pickles = [read_member(archive, n) for n in archive.namelist() if n.endswith("/data.pkl")]
        else:
            pickles = [here.read_bytes()]  # and the tensors after it
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise WeightsError(f"{path} cannot be read ({error}). Copy it again.") from error
    if any(b"bytearray" in content for content in pickles):
        raise WeightsError(
            f"{path} is a pickle that asks for a bytearray, which can have any size and which no state dict needs. "
            "Save only the tensors: torch.save(model.state_dict(), …)."
        )


def _head(path: Place) -> bytes:
    with require_regular(local(path)).open("rb") as stream:
        return stream.read(512)


def _container(path: Place) -> Container:
    try:
        head = _head(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error}). Give a file with weights.") from error
    # Checked first, since the length at the start may look like one of the others. A header has at most 100 MB.
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
    """Describe what else the file is, and what to do; None if its first bytes do not tell."""
    if not head:
        return "is empty. Copy it again."
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<")):
        return "is a web page (HTML or XML), not weights. Download the file itself."
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights themselves. Fetch them: `git lfs pull`."
    if head.startswith(b"\x1f\x8b"):
        return "is compressed with gzip. Decompress it: gunzip FILE."
    return None


def _read_safetensors(path: Place) -> WeightsFile:
    try:
        with safe_open(local(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  safe_open is not a mapping
            notes = file.metadata()
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error}). Copy it again.") from error
    try:
        names = parse_json((notes or {}).get("classes", "null"))
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
    """Return the entry to take: the wanted one, or the first usual one; None if the file is a state dict itself."""
    states = [key for key in content if isinstance(key, str) and _is_state(content[key])]
    if wanted is not None:
        if wanted not in states:
            raise WeightsError(
                f"{path} has no entry {wanted!r} with tensors{near_names(wanted, states) or '.'} "
                f"Set model.entry to one of its entries with tensors: {', '.join(states) or 'none'}."
            )
        return wanted
    if not states:
        return None
    usual = next((key for key in ENTRIES if key in states), None)
    if usual is None and len(states) > 1:
        raise WeightsError(
            f"{path} holds tensors under {', '.join(states)}; set model.entry to the one that holds the DNN."
        )
    return usual or states[0]


def _tensors(path: Place, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    if not _is_state(state):
        kinds = sorted({f"{k}: {type(v).__name__}" for k, v in state.items()})[:5]
        raise WeightsError(
            f"{path} holds no state dict, neither directly nor under {', '.join(ENTRIES)}; it holds "
            f"{'; '.join(kinds) or 'nothing'}. Save `model.state_dict()`."
        )
    return {key: tensor.detach() for key, tensor in state.items()}


def _classes(content: Mapping[Any, Any]) -> tuple[str, ...] | None:
    """Return the names of the classes in the order of the logits, None if the file does not state them."""
    for key in CLASS_ENTRIES:
        names = content.get(key)
        if isinstance(names, Mapping) and all(isinstance(i, int) for i in names.values()):
            names = sorted(names, key=names.__getitem__)
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None

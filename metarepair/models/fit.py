"""A weights file and a module in, the module filled out: by name and shape, or a message that names what differs.

Around the names there may be what training programs leave there (`module.` of data-parallel training, `_orig_mod.` of
torch.compile), or the names may be those of the family's first publication, which timm has a map for.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from metarepair.models.weights_file import WeightsFile
from metarepair.vectors import not_finite
from tasks.errors import WeightsError

PREFIXES = ("module.", "_orig_mod.")
COUNTER = "num_batches_tracked"  # files from before torch 0.4.1 lack it, and evaluation does not read it
SWA_COUNTER = "n_averaged"  # beside the weights of torch's AveragedModel


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A file's tensors under the module's names; what stood before each name in the file; what is to be told."""

    tensors: dict[str, Tensor]
    prefix: str
    notes: tuple[str, ...]


def load_weights(module: nn.Module, file: WeightsFile, name: str) -> tuple[str, ...]:
    """Copies the tensors of `file` into `module`; all must fit. Returns what was found around them, in words."""
    fitted = fit(module, file, name)
    module.load_state_dict(fitted.tensors)
    return fitted.notes


def fit(module: nn.Module, file: WeightsFile, name: str) -> Fitted:
    """The tensors of `file` as `module` wants them. Raises WeightsError naming what is missing, surplus or amiss."""
    wanted = module.state_dict()
    tensors, prefix = without_prefix(file.tensors, wanted)
    notes = list(_found(file, prefix))
    if tensors.keys() != wanted.keys():
        renamed = _published_names(module, tensors)
        if renamed is not None:
            tensors = renamed
            notes.append("names of the family's first publication")
    uncounted = {k for k in wanted if k.endswith(COUNTER)} - tensors.keys()
    tensors |= {k: wanted[k] for k in uncounted}
    _check(wanted, tensors, file, name)
    bad = not_finite(tensors)
    if bad:
        raise WeightsError(
            f"{file.path}: {bad[0]} is not finite (NaN or infinite; {len(bad)} such tensors). Take a checkpoint from "
            "before training diverged."
        )
    told = (f"{file.path.name}: {'; '.join(notes)}",) if notes else ()
    return Fitted(tensors=tensors, prefix=prefix, notes=told)


def without_prefix(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """The tensors without what stands before every name, where the DNN's own names lack it; and that prefix."""
    found, prefix = dict(tensors), ""
    if found.keys() & wanted.keys():
        return found, prefix
    if SWA_COUNTER in found and SWA_COUNTER not in wanted:
        del found[SWA_COUNTER]
    while found and (common := next((p for p in PREFIXES if all(k.startswith(p) for k in found)), None)):
        found = {k.removeprefix(common): v for k, v in found.items()}
        prefix += common
    return found, prefix


def _found(file: WeightsFile, prefix: str) -> list[str]:
    notes = []
    if file.entry is not None:
        others = [e for e in file.entries if e != file.entry]
        which = f"the weights are its entry {file.entry!r}"
        if file.averaged:
            which += ", an average (EMA)"
        if others:
            which += f"; it has {', '.join(map(repr, others))} as well (model.entry chooses)"
        notes.append(which)
    if SWA_COUNTER in file.tensors and prefix:
        notes.append("they are an average (torch's AveragedModel)")
    if prefix:
        notes.append(f"the prefix {prefix!r} was left out of the names")
    return notes


def _published_names(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors by timm's own map for the module's family; None where there is none, or it does not lead there."""
    convert = getattr(sys.modules.get(type(module).__module__), "checkpoint_filter_fn", None)
    if convert is None:
        return None
    try:
        renamed = dict(convert(dict(tensors), module))
    except (KeyError, ValueError, RuntimeError, AttributeError, IndexError, TypeError):
        return None  # names that the map does not know: what is missing is told by the names as they are
    return renamed if renamed.keys() == module.state_dict().keys() else None


def _check(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], file: WeightsFile, name: str) -> None:
    differ = _Difference(
        wanted=wanted,
        tensors=tensors,
        missing=[k for k in wanted if k not in tensors],
        unexpected=[k for k in tensors if k not in wanted],
        shapes=[k for k in wanted if k in tensors and wanted[k].shape != tensors[k].shape],
    )
    if not (differ.missing or differ.unexpected or differ.shapes):
        return
    raise WeightsError(
        f"{file.path} holds the weights of another DNN than {name} with these classes: {len(differ.missing)} tensors "
        f"are missing, {len(differ.unexpected)} unexpected, {len(differ.shapes)} of another shape ({differ.first()}). "
        f"{differ.remedy()}"
    )


@dataclass(frozen=True, kw_only=True)
class _Difference:
    """What a DNN wants, what a file has, and the names in which they differ."""

    wanted: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    shapes: list[str]

    def first(self) -> str:
        """The first thing that differs, with the nearest name on the other side."""
        if self.missing:
            near = difflib.get_close_matches(self.missing[0], self.unexpected, n=2)
            hint = f", near it in the file: {' or '.join(near)}" if near else ""
            return f"first missing: {self.missing[0]}{hint}"
        if self.unexpected:
            near = difflib.get_close_matches(self.unexpected[0], list(self.wanted), n=2)
            hint = f", near it in the DNN: {' or '.join(near)}" if near else ""
            return f"first unexpected: {self.unexpected[0]}{hint}"
        key = self.shapes[0]
        return (
            f"first: {key} is {_size(self.tensors[key])} in the file and {_size(self.wanted[key])} in the DNN"
        )

    def remedy(self) -> str:
        """What to do about it."""
        if not self.missing and not self.unexpected and 0 < len(self.shapes) <= 2:
            key = self.shapes[-1]
            have, need = self.tensors[key].shape, self.wanted[key].shape
            if len(have) and have[0] != need[0] and have[1:] == need[1:]:
                return (
                    f"Only the classifier differs: the file has {have[0]} classes, the DNN {need[0]} (the data set's, "
                    "where its factory takes num_classes). Bring weights for the data set's classes, or "
                    "set data.name to theirs."
                )
        return "Set model.name (and model.stem) to the DNN that the weights belong to, or model.weights to its file."


def _size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"

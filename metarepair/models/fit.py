"""Match the tensors of a weights file to a module by name and shape, and record each tensor's name in the file.

The names may have a prefix that a wrapper left (`module.` of data-parallel training, `_orig_mod.` of torch.compile,
`model.` of Lightning, or any other). They may also be the names of the model family's first publication, if timm has a
map from these.
"""

from __future__ import annotations

import difflib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metarepair.engine.vectors import not_finite
from metarepair.models.weights_file import WeightsFile
from tasks.errors import WeightsError

COUNTER = "num_batches_tracked"  # missing from files older than torch 0.4.1, and not read in evaluation
SWA_COUNTER = "n_averaged"  # saved by torch's AveragedModel beside the weights


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A file's tensors under the module's names.

    names: maps the module's name of a tensor to its name in the file, if the file holds it whole and in the same order.
    Batch-norm counters that the file lacks have no entry, nor have tensors that timm's map computes from the file's.
    """

    tensors: dict[str, Tensor]
    names: dict[str, str]
    prefix: str
    notes: tuple[str, ...]


def load_weights(module: nn.Module, file: WeightsFile, name: str) -> tuple[str, ...]:
    """Copy the tensors of `file` into `module`; all must fit. Returns notes on how the file was read."""
    fitted = fit(module, file, name)
    module.load_state_dict(fitted.tensors)
    return fitted.notes


def fit(
    module: nn.Module,
    file: WeightsFile,
    name: str,
    *,
    ignored: tuple[str, ...] = (),
    remedy: str | None = None,
) -> FitResult:
    """Match the tensors of `file` to those of `module`.

    ignored: beginnings of names (without the prefix) that the file may hold in addition, such as the classifier of a
    feature network. remedy: the remedy of an error, in place of one on the settings of the deployed DNN. Raises
    WeightsError that names missing, unexpected and misshapen tensors, or one that is not finite.
    """
    wanted = module.state_dict()
    prefix, surplus = _prefix(file, wanted, ignored)
    names = {key: prefix + key for key in wanted if prefix + key in file.tensors}
    tensors = {key: file.tensors[names[key]] for key in names}
    notes = _found(file, prefix)
    if surplus or _needed(wanted) - names.keys():
        published = _published_names(module, file, ignored)
        if published is not None:
            tensors, names, prefix = published
            surplus, notes = [], [*_found(file, prefix), "names of the family's first publication"]
            unused = set(file.tensors) - set(names.values())
            if unused and names.keys() == tensors.keys():
                notes.append(f"timm's map leaves out {len(unused)} tensors ({', '.join(sorted(unused)[:3])})")
    counters = {k: v for k, v in wanted.items() if k.endswith(COUNTER) and k not in tensors}
    tensors |= {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in counters.items()}
    _check(wanted, tensors, surplus, prefix, file, name, remedy)
    _check_kinds(wanted, tensors, file, name)
    bad = not_finite(tensors)
    if bad:
        raise WeightsError(
            f"{file.path}: {bad[0]} is not finite (NaN or infinite values; {len(bad)} such tensors). Give a checkpoint "
            "whose values are all finite."
        )
    told = (f"{file.path.name}: {'; '.join(notes)}",) if notes else ()
    return FitResult(tensors=tensors, names=names, prefix=prefix, notes=told)


def _needed(wanted: Mapping[str, Tensor]) -> set[str]:
    return {key for key in wanted if not key.endswith(COUNTER)}


def _prefix(
    file: WeightsFile, wanted: Mapping[str, Tensor], ignored: tuple[str, ...]
) -> tuple[str, list[str]]:
    """Return the prefix of the DNN's names in the file, and the names in the file that are not tensors of the DNN.

    It is the prefix under which most of the DNN's tensors are found; on a tie, the one with the fewest surplus names.
    """
    if file.under is not None:
        return file.under, _surplus(file, wanted, file.under, ignored)
    needed = _needed(wanted)
    behind = Counter(prefix for key in file.tensors for prefix, rest in _cuts(key) if rest in needed)
    most = max(behind.values(), default=0)
    found = {p: _surplus(file, wanted, p, ignored) for p in behind if behind[p] == most}
    found = found or {"": _surplus(file, wanted, "", ignored)}
    prefix = min(found, key=lambda p: (len(found[p]), len(p)))
    return prefix, found[prefix]


def _cuts(key: str) -> Iterator[tuple[str, str]]:
    """Yield a name as (prefix, rest), split at its start and after each dot."""
    for start in (0, *(place + 1 for place, letter in enumerate(key) if letter == ".")):
        yield key[:start], key[start:]


def _surplus(
    file: WeightsFile, wanted: Mapping[str, Tensor], prefix: str, ignored: tuple[str, ...]
) -> list[str]:
    known = {prefix + key for key in wanted} | ({SWA_COUNTER} if prefix else set())
    passed = tuple(prefix + beginning for beginning in ignored)
    left = [key for key in file.tensors if key not in known and not key.startswith(passed)]
    return [key for key in left if key.startswith(file.under or "")]


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
    left = [key for key in file.tensors if not key.startswith(file.under or "")]
    if left:
        notes.append(f"{len(left)} tensors without the prefix are not used ({', '.join(left[:3])})")
    return notes


def _published_names(
    module: nn.Module, file: WeightsFile, ignored: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, str], str] | None:
    """Return tensors, their names in the file, and the prefix, by timm's own map for the module's family.

    None if there is no map, or if it does not lead to the module's names.
    """
    convert = getattr(sys.modules.get(type(module).__module__), "checkpoint_filter_fn", None)
    if convert is None:
        return None
    wanted = module.state_dict()
    given = [k for k in file.tensors if k.startswith(file.under or "") and (k in wanted or k != SWA_COUNTER)]
    for prefix in [file.under] if file.under is not None else _shared_prefixes(given):
        # Copies, so that no two share memory: a tensor that the map renamed is recognised by its memory address.
        own = {k: file.tensors[k].clone(memory_format=torch.contiguous_format) for k in given}
        try:
            renamed = dict(convert({k.removeprefix(prefix): v for k, v in own.items()}, module))
        except (KeyError, ValueError, RuntimeError, AttributeError, IndexError, TypeError):
            continue  # the map does not know these names; the error will list them as they are
        renamed = {k: v for k, v in renamed.items() if not k.startswith(ignored)}
        if _needed(wanted) <= renamed.keys() <= wanted.keys():
            return renamed, _renamings(renamed, own, file), prefix
    return None


def _shared_prefixes(names: list[str]) -> Iterator[str]:
    """Yield the empty prefix, and each longer one that all names share."""
    prefix = ""
    while True:
        yield prefix
        heads = {key[len(prefix) :].partition(".")[:2] for key in names}
        if len(heads) != 1:
            return
        head, dot = heads.pop()
        if not dot:
            return
        prefix += head + dot


def _renamings(renamed: Mapping[str, Tensor], own: Mapping[str, Tensor], file: WeightsFile) -> dict[str, str]:
    """Return the file's name of each mapped tensor that equals one of the file's, bit for bit and in its order."""
    by_memory = {tensor.data_ptr(): key for key, tensor in own.items() if tensor.numel()}
    names = {}
    for key, tensor in renamed.items():
        source = by_memory.get(tensor.data_ptr())
        if source is None or tensor.numel() != own[source].numel() or not tensor.is_contiguous():
            continue
        if torch.equal(tensor.reshape(own[source].shape), file.tensors[source]):
            names[key] = source
    counts = Counter(names.values())
    return {key: source for key, source in names.items() if counts[source] == 1}


def _check(
    wanted: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    surplus: list[str],
    prefix: str,
    file: WeightsFile,
    name: str,
    remedy: str | None,
) -> None:
    differ = _Difference(
        wanted=wanted,
        tensors=tensors,
        prefix=prefix,
        missing=[k for k in wanted if k not in tensors],
        unexpected=surplus,
        shapes=[k for k in wanted if k in tensors and wanted[k].shape != tensors[k].shape],
    )
    if not (differ.missing or differ.unexpected or differ.shapes):
        return
    raise WeightsError(
        f"{file.path} does not fit {name}: {len(differ.missing)} tensors are missing, "
        f"{len(differ.unexpected)} unexpected, {len(differ.shapes)} of another shape ({differ.first()}). "
        f"{remedy or differ.remedy()}"
    )


def _check_kinds(
    wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], file: WeightsFile, name: str
) -> None:
    """Raise WeightsError if loading would convert between floating-point, complex and whole numbers.

    Counters may be floating-point: averaging state dicts makes them so, and evaluation does not read them.
    """
    differ = [
        key
        for key, tensor in tensors.items()
        if _kind(tensor) != _kind(wanted[key]) and not (key.endswith(COUNTER) and tensor.is_floating_point())
    ]
    if differ:
        key = differ[0]
        raise WeightsError(
            f"{file.path} does not fit {name}: {key} holds {_kind(tensors[key])} in the file ({tensors[key].dtype}) "
            f"and {_kind(wanted[key])} in the DNN ({wanted[key].dtype}); {len(differ)} such tensors. Give the DNN's "
            "own state dict, with its own types of numbers."
        )


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "floating-point numbers"
    return "complex numbers" if tensor.is_complex() else "whole numbers"


@dataclass(frozen=True, kw_only=True)
class _Difference:
    """The tensors of a DNN, those of a file under the prefix, and the names in which they differ."""

    wanted: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    prefix: str
    missing: list[str]
    unexpected: list[str]
    shapes: list[str]

    def first(self) -> str:
        """Describe the first difference, with the nearest names on the other side."""
        if self.missing:
            near = difflib.get_close_matches(self.missing[0], self.unexpected, n=2)
            hint = f", similar in the file: {' or '.join(near)}" if near else ""
            return f"first missing: {self.missing[0]}{hint}"
        if self.unexpected:
            near = difflib.get_close_matches(self.unexpected[0], list(self.wanted), n=2)
            hint = f", similar in the DNN: {' or '.join(near)}" if near else ""
            return f"first unexpected: {self.unexpected[0]}{hint}"
        key = self.shapes[0]
        return (
            f"first: {key} is {_size(self.tensors[key])} in the file and {_size(self.wanted[key])} in the DNN"
        )

    def remedy(self) -> str:
        """Describe what to do about the difference."""
        if self.unexpected and not self.missing and not self.shapes and self.prefix:
            return (
                f"All tensors of the DNN have the prefix {self.prefix!r}. The others belong to modules that the DNN "
                "does not have, and a module in front of it would change its images. Set model.entry to "
                f"{self.prefix!r} to take only the tensors with that prefix."
            )
        last = list(self.wanted)[-len(self.shapes) :]
        if not self.missing and not self.unexpected and 0 < len(self.shapes) <= 2 and self.shapes == last:
            key = self.shapes[-1]
            have, need = self.tensors[key].shape, self.wanted[key].shape
            if len(have) and have[0] != need[0] and have[1:] == need[1:]:
                return (
                    f"Only the classifier differs ({', '.join(self.shapes)}): the file has {have[0]} classes, the DNN "
                    f"{need[0]} (the data set's, if its factory takes num_classes). Give weights for the data set's "
                    "classes, or set data.name to the weights' data set."
                )
        return (
            "The file must hold each tensor of the DNN under its name, with or without one prefix common to all. Set "
            "model.name (and model.stem) to the DNN that the weights belong to, or model.weights to the DNN's file."
        )


def _size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"

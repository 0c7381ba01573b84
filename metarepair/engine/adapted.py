"""Which parameters of a module the inner loop adapts.

Source: ANIL (Raghu et al. 2020) adapts the head alone; a pattern names any other part.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from tasks.errors import ConfigError

HEAD = "head"


def adapted_names(module: nn.Module, parts: Sequence[str]) -> tuple[str, ...]:
    """Names of the parameters that `parts` names, in the module's order.

    A part is `head` (the classifier: timm's `get_classifier()`, else the last `nn.Linear`), a parameter's name, a
    module's name, or a pattern of these (`layer3.*`); `*` is all. Raises ConfigError for a part that names nothing.
    """
    names = [name for name, _ in module.named_parameters()]
    listed = {id(parameter): name for name, parameter in module.named_parameters()}
    # A tensor with two names is found by either, and goes by the one that it is listed by.
    known = {name: listed[id(p)] for name, p in module.named_parameters(remove_duplicate=False)}
    chosen: set[str] = set()
    for part in parts:
        found = (
            _head(module) if part == HEAD else {first for name, first in known.items() if _names(part, name)}
        )
        if not found:
            near = get_close_matches(part, [HEAD, *_modules_of(list(known))], n=3)
            hint = f" Near names: {', '.join(near)}." if near else ""
            raise ConfigError(
                f"inner.parts: {part!r} names no parameter of {type(module).__name__}.{hint} Give head, *, a "
                "module's or parameter's name, or a pattern such as layer3.*"
            )
        chosen |= found
    return tuple(name for name in names if name in chosen)


def check_trainable(module: nn.Module, parts: Sequence[str]) -> None:
    """Raises ConfigError where `parts` names only parameters with requires_grad=False, which no repair changes."""
    named = set(adapted_names(module, parts))
    if not any(parameter.requires_grad for name, parameter in module.named_parameters() if name in named):
        raise ConfigError(
            f"All {len(named)} parameters of {type(module).__name__} that inner.parts={list(parts)} names have "
            "requires_grad=False, and a repair leaves such parameters as they are. Set requires_grad_(True) on those "
            "that may change, or name others in inner.parts."
        )


def _names(part: str, name: str) -> bool:
    return fnmatchcase(name, part) or fnmatchcase(name, f"{part}.*")


def _modules_of(names: Sequence[str]) -> list[str]:
    return sorted({name.rpartition(".")[0] for name in names} | set(names))


def _head(module: nn.Module) -> set[str]:
    classifier = getattr(module, "get_classifier", None)
    linear = next((m for m in reversed(list(module.modules())) if isinstance(m, nn.Linear)), None)
    head = classifier() if callable(classifier) else linear
    # Distilled nets have a classifier for each of their two tokens.
    heads = [m for m in (head if isinstance(head, tuple | list) else [head]) if isinstance(m, nn.Module)]
    mine = {id(p) for m in heads for p in m.parameters()}
    if not mine:
        kind = (
            f"its head is {type(heads[0]).__name__}, without parameters"
            if heads
            else "it has no linear layer"
        )
        raise ConfigError(
            f"inner.parts: 'head' names no parameter of {type(module).__name__}: {kind}. "
            "Name the last layer with parameters instead, or give * for all."
        )
    return {name for name, parameter in module.named_parameters() if id(parameter) in mine}

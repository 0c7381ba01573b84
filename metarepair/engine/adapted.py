"""Choose which parameters of a module the inner loop adapts.

Source: ANIL (Raghu et al. 2020) adapts the head alone. Other parts are given by name or pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from tasks.errors import ConfigError

HEAD = "head"


def adapted_names(module: nn.Module, parts: Sequence[str]) -> tuple[str, ...]:
    """Names of the parameters that `parts` selects, in the module's order.

    Source: ANIL (Raghu et al. 2020), which is the part "head".

    Args:
        module: The model.
        parts: Each is "head" (the classifier: timm's `get_classifier()`, else the last `nn.Linear`), the name of a
            parameter or module, a pattern of such names ("layer3.*"), or "*" for all parameters.

    Returns:
        Names as in `module.named_parameters()`. A parameter that several layers share appears once, under its first
        name; a part may use any of its names.

    Raises:
        ConfigError: A part matches no parameter.
    """
    names = [name for name, _ in module.named_parameters()]
    listed = {id(parameter): name for name, parameter in module.named_parameters()}
    # A tensor with two names is matched by either, and is returned under the name that it is listed by.
    known = {name: listed[id(p)] for name, p in module.named_parameters(remove_duplicate=False)}
    chosen: set[str] = set()
    for part in parts:
        selected = (
            _head(module) if part == HEAD else {first for name, first in known.items() if _names(part, name)}
        )
        if not selected:
            near = get_close_matches(part, [HEAD, *_modules_of(list(known))], n=3)
            hint = f" Near names: {', '.join(near)}." if near else ""
            raise ConfigError(
                f"inner.parts: {part!r} names no parameter of {type(module).__name__}.{hint} Give head, *, the name of "
                "a module or parameter, or a pattern such as layer3.*"
            )
        chosen |= selected
    return tuple(name for name in names if name in chosen)


def check_trainable(module: nn.Module, parts: Sequence[str]) -> None:
    """Raise ConfigError if `parts` names only parameters with requires_grad=False, which no repair changes."""
    named = set(adapted_names(module, parts))
    if not any(parameter.requires_grad for name, parameter in module.named_parameters() if name in named):
        raise ConfigError(
            f"All {len(named)} parameters of {type(module).__name__} in inner.parts={list(parts)} have "
            "requires_grad=False, and a repair does not change such parameters. Call requires_grad_(True) on those "
            "that may change, or name other parameters in inner.parts."
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
    head_ids = {id(p) for m in heads for p in m.parameters()}
    if not head_ids:
        kind = (
            f"its head, {type(heads[0]).__name__}, has no parameters" if heads else "it has no linear layer"
        )
        raise ConfigError(
            f"inner.parts: 'head' names no parameter of {type(module).__name__}: {kind}. "
            "Name the last layer with parameters instead, or give * for all."
        )
    return {name for name, parameter in module.named_parameters() if id(parameter) in head_ids}

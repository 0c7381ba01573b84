"""Any DNN in, the names of its blocks out, and what each maps.

What ArchRepair (Qi et al. 2023) calls a block in the DNNs that it repairs, as a rule for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from metarepair.methods.archrepair.block import BlockShape, input_of
from tasks.errors import ConfigError, near_names

# B images, C channels, H W pixels

CONTAINERS = (nn.ModuleList, nn.ModuleDict)
WEIGHED = (nn.modules.conv._ConvNd, nn.Linear)


def find_blocks(module: nn.Module, patterns: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the blocks of any DNN, or those that match `patterns`.

    A block is a module of a class of its own (no container of torch's) with two layers of weights or more: a residual
    block, a dense block, one of ConvNeXt or VAN. A module whose containers hold blocks with most of its weights is a
    stage, and its blocks count. A DNN with fewer than two such blocks is taken by its plain convolutions.
    """
    named = {name: m for name, m in module.named_modules() if name}
    if patterns:
        return tuple(dict.fromkeys(name for pattern in patterns for name in _matching(pattern, named)))
    names = {id(m): name for name, m in named.items()}
    found = _blocks_inside(module)
    while len(found) == 1:  # a wrapper around the DNN itself
        found = _blocks_inside(found[0])
    if len(found) < 2:
        found = [m for m in named.values() if isinstance(m, nn.Conv2d)]
    if not found:
        raise ConfigError(
            f"archrepair puts convolutions beside a block of a DNN, and {type(module).__name__} has neither blocks of "
            "layers nor nn.Conv2d. Leave archrepair out, or name its blocks (modules that map [B, C, H, W] to the "
            "same) in methods.archrepair.blocks."
        )
    return tuple(dict.fromkeys(names[id(m)] for m in found))


def _matching(pattern: str, named: Mapping[str, nn.Module]) -> list[str]:
    found = [name for name in named if fnmatchcase(name, pattern)]
    if not found:
        raise ConfigError(
            f"methods.archrepair.blocks: {pattern!r} names no module of the DNN{near_names(pattern, named) or '.'} "
            "Give names of modules, or patterns such as stages.*"
        )
    return found


def _is_container(module: nn.Module) -> bool:
    """A chain of layers, or a list: not the ModuleDict of a class that says itself what it does (a dense block)."""
    return isinstance(module, nn.Sequential) or type(module) in CONTAINERS


def _blocks_inside(module: nn.Module) -> list[nn.Module]:
    return [block for child in module.children() for block in _blocks_of(child)]


def _blocks_of(module: nn.Module) -> list[nn.Module]:
    if _is_container(module):
        return _blocks_inside(module)
    held = [b for child in module.children() if _is_container(child) for b in _blocks_inside(child)]
    if 2 * sum(number_of_weights(block) for block in held) > number_of_weights(module):
        return held
    layers = sum(isinstance(m, WEIGHED) for m in module.modules())
    return [module] if layers >= 2 else []


def number_of_weights(module: nn.Module) -> int:
    """Of all parameters."""
    return sum(p.numel() for p in module.parameters())


def usable_blocks(module: nn.Module, patterns: Sequence[str], x_BCHW: Tensor) -> dict[str, BlockShape]:
    """The blocks that operations can stand beside, and their shapes; plain convolutions where no block is usable.

    Raises ConfigError where there is none.
    """
    found = block_shapes(module, find_blocks(module, patterns), x_BCHW)
    if not found and not patterns:
        convolutions = [name for name, m in module.named_modules() if isinstance(m, nn.Conv2d)]
        found = block_shapes(module, convolutions, x_BCHW)
    if not found:
        looked = "methods.archrepair.blocks" if patterns else "its blocks and convolutions"
        raise ConfigError(
            f"archrepair needs a block that a forward pass of {type(module).__name__} calls once with a map "
            f"[B, C, H, W] and that returns one; {looked} were looked at, and none is. Name such modules in "
            "methods.archrepair.blocks, or leave archrepair out."
        )
    return found


@torch.no_grad()
def block_shapes(module: nn.Module, names: Sequence[str], x_BCHW: Tensor) -> dict[str, BlockShape]:
    """Shapes of those blocks that a forward pass calls once, on a map, and that return one and have weights."""
    calls: dict[str, list[BlockShape | None]] = {name: [] for name in names}

    def hook_of(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], y_BCHW: Any) -> None:
            x_BCHW = input_of(arguments, named)
            maps = all(isinstance(t, Tensor) and t.ndim == 4 for t in (x_BCHW, y_BCHW))
            calls[name].append(BlockShape.of(x_BCHW, y_BCHW, module) if maps else None)

        return hook

    parts = {name: module.get_submodule(name) for name in names}
    handles = [m.register_forward_hook(hook_of(name), with_kwargs=True) for name, m in parts.items()]
    try:
        module(x_BCHW)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: found[0]
        for name, found in calls.items()
        if len(found) == 1 and found[0] is not None and number_of_weights(parts[name])
    }

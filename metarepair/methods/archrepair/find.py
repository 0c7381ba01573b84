"""Find the blocks of any DNN, and the shape of each.

ArchRepair (Qi et al. 2023) names the blocks of the DNNs that it repairs; this is a rule that applies to any DNN.
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
    """Return the names of the blocks of a DNN, or of the modules that match `patterns`.

    A block is a module with two or more layers with weights whose class is not one of torch's containers: a residual
    block, a dense block, a block of ConvNeXt or VAN. If the containers in a module hold blocks with most of its
    weights, the module is a stage, and these blocks count instead of it. In a DNN with fewer than two blocks, each
    plain convolution is a block. Raises ConfigError if there is nothing to choose from.
    """
    named = {name: m for name, m in module.named_modules() if name}
    if patterns:
        return tuple(dict.fromkeys(name for pattern in patterns for name in _matching(pattern, named)))
    names = {id(m): name for name, m in named.items()}
    found = _blocks_inside(module)
    while len(found) == 1:  # the DNN is inside a wrapper
        found = _blocks_inside(found[0])
    if len(found) < 2:
        found = [m for m in named.values() if isinstance(m, nn.Conv2d)]
    if not found:
        raise ConfigError(
            f"archrepair adds an operation beside a block of a DNN, and {type(module).__name__} has neither blocks of "
            "layers nor nn.Conv2d. Leave archrepair out, or name its blocks (modules from [B, C, H, W] to "
            "[B, C, H, W]) in methods.archrepair.blocks."
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
    """Whether the module is a plain chain or collection of layers.

    A subclass of ModuleDict with its own forward (a dense block) is not.
    """
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
    """Return the number of values in all parameters."""
    return sum(p.numel() for p in module.parameters())


def usable_blocks(module: nn.Module, patterns: Sequence[str], x_BCHW: Tensor) -> dict[str, BlockShape]:
    """Return the blocks that an operation can be added to, with their shapes.

    If no block is usable, these are plain convolutions. Raises ConfigError if none of these is usable either.
    """
    found = block_shapes(module, find_blocks(module, patterns), x_BCHW)
    if not found and not patterns:
        convolutions = [name for name, m in module.named_modules() if isinstance(m, nn.Conv2d)]
        found = block_shapes(module, convolutions, x_BCHW)
    if not found:
        looked = "methods.archrepair.blocks" if patterns else "its blocks and convolutions"
        raise ConfigError(
            f"archrepair needs a block that a forward pass of {type(module).__name__} calls once, with a feature map "
            f"[B, C, H, W], and that returns one; {looked} were looked at, and none is such a block. Name such modules "
            "in methods.archrepair.blocks, or leave archrepair out."
        )
    return found


@torch.no_grad()
def block_shapes(module: nn.Module, names: Sequence[str], x_BCHW: Tensor) -> dict[str, BlockShape]:
    """Return the shapes of the usable blocks among `names`.

    A block is usable if a forward pass calls it once, it maps a feature map to a feature map, and it has weights.
    """
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

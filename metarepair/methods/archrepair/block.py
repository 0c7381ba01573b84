"""Add operations in parallel to a block of a DNN: all candidates during the search, then only the chosen one.

Source: Qi et al. 2023 (ArchRepair) relaxes the vulnerable block to a continuous search space and publishes no formula.
This is our reconstruction with the mixed operation of Liu et al. 2019 (DARTS, Eq. 2):
y = block(x) + Σ softmax(α)ₒ·o(x). Every o ends in a norm whose scale starts at 0, so at the start y is bit-identical to
block(x).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from metarepair.engine.stateless import seeded

# B images, C channels, H W pixels, O operations

Operation = Literal[
    "zero", "skip", "separable_3x3", "separable_5x5", "dilated_3x3", "max_pool", "average_pool"
]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)  # zero first: it wins if all α are equal
NormKind = Literal["batch", "group"]


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """The shape of a block's map: its input and output channels, and its stride (input pixels per output pixel)."""

    in_channels: int
    out_channels: int
    stride: tuple[int, int]
    norm: NormKind

    @classmethod
    def of(cls, x_BCHW: Tensor, y_BCHW: Tensor, module: nn.Module) -> BlockShape:
        """Return the shape of a block from its input and output.

        The norm is `batch` if the DNN has batch norms that store statistics, else `group`.
        """
        (_, before, *size), (_, after, *small) = x_BCHW.shape, y_BCHW.shape
        batch = any(isinstance(m, _BatchNorm) and m.track_running_stats for m in module.modules())
        height, width = (max(1, round(large / less)) for large, less in zip(size, small, strict=True))
        return cls(
            in_channels=before,
            out_channels=after,
            stride=(height, width),
            norm="batch" if batch else "group",
        )


def build_operation(name: Operation, shape: BlockShape) -> nn.Module:
    """Build the operation, with a last norm whose scale is 0.

    The convolutions are those of DARTS: ReLU first, and the separable ones applied twice. Operations that keep the
    channels (skip, pools) are followed by a 1 × 1 convolution if the block changes the channels. If the block has a
    stride, skip is average pooling.
    """
    before, after = shape.in_channels, shape.out_channels
    layers: list[nn.Module]
    if name in ("separable_3x3", "separable_5x5"):
        kernel = 3 if name == "separable_3x3" else 5
        first = _separable(before, after, kernel, shape.stride)
        layers = [*first, _norm(after, shape.norm), *_separable(after, after, kernel)]
    elif name == "dilated_3x3":
        layers = _separable(before, after, 3, shape.stride, dilation=2)
    else:
        layers = [*_pooling(name, shape.stride), *_projection(before, after)]
    last = _norm(after, shape.norm)
    nn.init.zeros_(last.weight)
    return nn.Sequential(*layers, last)


def _separable(
    before: int, after: int, kernel: int, stride: tuple[int, int] = (1, 1), *, dilation: int = 1
) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    by_channel = nn.Conv2d(before, before, kernel, stride, padding, dilation, groups=before, bias=False)
    return [nn.ReLU(), by_channel, nn.Conv2d(before, after, 1, bias=False)]


def _pooling(name: Operation, stride: tuple[int, int]) -> list[nn.Module]:
    if name == "max_pool":
        return [nn.MaxPool2d(3, stride, 1)]
    if name == "average_pool":
        return [nn.AvgPool2d(3, stride, 1, count_include_pad=False)]
    return [nn.AvgPool2d(stride, stride, ceil_mode=True)] if stride != (1, 1) else []


def _projection(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 1, bias=False)] if before != after else []


def _norm(channels: int, kind: NormKind) -> nn.BatchNorm2d | nn.GroupNorm:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(1, channels)


def input_of(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """Return the feature map that a block was called with. A dense layer's list of maps is concatenated."""
    first = arguments[0] if arguments else next(iter(named.values()))
    return torch.cat(list(first), 1) if isinstance(first, list | tuple) else first


def _resized(added_BCHW: Tensor, like_BCHW: Tensor) -> Tensor:
    """Pool the operation's output to the size of the block's output, if padding and stride gave another size."""
    height, width = like_BCHW.shape[2:]
    if added_BCHW.shape[2:] == like_BCHW.shape[2:]:
        return added_BCHW
    return F.adaptive_avg_pool2d(added_BCHW, (height, width))


class RelaxedBlock(nn.Module):
    """The block + Σ softmax(α)ₒ·o(x). The operation `zero` has a share of the softmax but adds nothing."""

    def __init__(self, block: nn.Module, shape: BlockShape) -> None:
        super().__init__()
        self.block = block
        self.operations = nn.ModuleDict({name: build_operation(name, shape) for name in OPERATIONS[1:]})
        self.alpha_O = nn.Parameter(torch.zeros(len(OPERATIONS)))

    def shares(self) -> dict[Operation, float]:
        """Return softmax(α) by operation."""
        shares: list[float] = self.alpha_O.detach().double().softmax(0).tolist()
        return dict(zip(OPERATIONS, shares, strict=True))

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        x_BCHW = input_of(arguments, named)
        y_BCHW: Tensor = self.block(*arguments, **named)
        shares_O = self.alpha_O.softmax(0)
        for share, operation in zip(shares_O[1:], self.operations.values(), strict=True):
            y_BCHW = y_BCHW + share * _resized(operation(x_BCHW), y_BCHW)
        return y_BCHW


class ExtendedBlock(nn.Module):
    """The block + one operation on the same input."""

    def __init__(self, block: nn.Module, operation: nn.Module) -> None:
        super().__init__()
        self.block, self.operation = block, operation

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        x_BCHW = input_of(arguments, named)
        y_BCHW: Tensor = self.block(*arguments, **named)
        return y_BCHW + _resized(self.operation(x_BCHW), y_BCHW)


def relax(module: nn.Module, name: str, shape: BlockShape, *, seed: int) -> RelaxedBlock:
    """Replace the block `name` of `module` with its relaxed block.

    The new weights depend on the seed alone: they are drawn on the CPU, whatever the device.
    """
    block = module.get_submodule(name)
    with seeded(torch.device("cpu"), seed):
        relaxed = RelaxedBlock(block, shape)
    like = next(iter(chain(block.parameters(), module.parameters())))
    relaxed.alpha_O.data = relaxed.alpha_O.data.to(like)
    _like(relaxed.operations, like)
    module.set_submodule(name, relaxed.train(block.training))
    return relaxed


def extend(module: nn.Module, name: str, shape: BlockShape, operation: Operation) -> ExtendedBlock:
    """Replace the block `name` of `module` with the block and one operation; the caller loads the weights."""
    block = module.get_submodule(name)
    with seeded(torch.device("cpu"), 0):
        added = build_operation(operation, shape)
    extended = ExtendedBlock(block, _like(added, next(iter(chain(block.parameters(), module.parameters())))))
    module.set_submodule(name, extended.train(block.training))
    return extended


def _like(operations: nn.Module, parameter: Tensor) -> nn.Module:
    """Move the operations to the device and type of the DNN, in channels-last layout.

    The block itself keeps its memory layout, and so its rounding.
    """
    operations.to(device=parameter.device, dtype=parameter.dtype)
    return operations.to(memory_format=torch.channels_last)


@torch.no_grad()
def keep(module: nn.Module, name: str, *, zero: bool = True) -> tuple[Operation, nn.Module]:
    """Replace the relaxed block `name` with the block and the operation of the largest α.

    The operation's softmax share is multiplied into its last norm, so its contribution stays as it was at the end of
    the search. If `zero` is chosen, the block alone takes the place; the argument `zero` says whether it may be.
    Returns the chosen operation and the new module.
    """
    relaxed = module.get_submodule(name)
    assert isinstance(relaxed, RelaxedBlock)
    shares = relaxed.shares()
    allowed = OPERATIONS if zero else OPERATIONS[1:]
    chosen = max(allowed, key=lambda operation: shares[operation])  # the first, if several are equal
    if chosen == "zero":
        module.set_submodule(name, relaxed.block)
        return chosen, relaxed.block
    operation = relaxed.operations[chosen]
    assert isinstance(operation, nn.Sequential)
    for parameter in operation[-1].parameters():
        parameter.mul_(shares[chosen])
    new = ExtendedBlock(relaxed.block, operation)
    module.set_submodule(name, new)
    return chosen, new


def as_json(name: str, operation: Operation, shape: BlockShape) -> dict[str, Any]:
    """Return the architecture as plain JSON values, which `from_json` reads."""
    return {"block": name, "operation": operation, **asdict(shape), "stride": list(shape.stride)}


def from_json(module: nn.Module, architecture: Mapping[str, Any]) -> None:
    """Change `module` to the architecture.

    Raises ValueError, KeyError, TypeError or AttributeError if the architecture is damaged.
    """
    operation, norm = architecture["operation"], architecture["norm"]
    numbers = [architecture["in_channels"], architecture["out_channels"], *architecture["stride"]]
    if operation not in OPERATIONS[1:] or norm not in get_args(NormKind):
        raise ValueError(f"operation {operation!r} with norm {norm!r} is not known here")
    if len(numbers) != 4 or not all(isinstance(n, int) and 1 <= n < math.inf for n in numbers):
        raise ValueError(f"channels and stride {numbers} are not four whole numbers of 1 or more")
    before, after, height, width = numbers
    shape = BlockShape(in_channels=before, out_channels=after, stride=(height, width), norm=norm)
    extend(module, architecture["block"], shape, operation)

"""An operation and inputs that differ from the deployed DNN's in a few channels in, the few channels of its output out.

A changed weight changes one channel of its layer's output. That stays one channel through batch norm, activations,
pooling, depthwise convolution and concatenation, so only it is computed; a convolution or matrix product that mixes the
channels adds the product of their change alone to what the deployed DNN has there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx

# P candidates, N images, C channels of an operation, R of them that differ. What an operation has for one image (its
# first axis is 1) follows P and N: values_PN1R is [P, N, 1, R, H, W], and a dim counts from that axis of 1.

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Few:
    """What `node` is for P candidates: as for the deployed DNN but for R channels, at `channels_R` along `dim`."""

    node: fx.Node
    channels_R: Tensor
    values_PN1R: Tensor
    dim: int

    @property
    def axis(self) -> int:
        return self.dim + 2


@dataclass(frozen=True, kw_only=True)
class Whole:
    """What a node is for P candidates, [P, N, ...]."""

    values_PN: Any  # a tensor, or a tuple of these where the operation returns several


Value = Few | Whole


class Deployed(Protocol):
    """What the nodes are in the deployed DNN: [N, ...] for N images, or as it is for what depends on none."""

    def __call__(self, node: fx.Node, /) -> Tensor: ...
    def is_constant(self, node: fx.Node, /) -> bool: ...


Values = dict[fx.Node, Value]
Rule = Callable[[fx.Node, Values, Deployed], Value | None]


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of what a node is for one image."""
    return tuple(node.meta["tensor_meta"].shape)


def whole(value: Value, deployed: Deployed) -> Whole:
    """All channels."""
    if isinstance(value, Whole):
        return value
    base_N = deployed(value.node)
    all_PN = base_N.expand(len(value.values_PN1R), *base_N.shape).clone()
    return Whole(values_PN=all_PN.index_copy_(value.axis, value.channels_R, value.values_PN1R))


def channels_of(value: Value, channels_R: Tensor, dim: int, deployed: Deployed) -> Tensor:
    """The given channels of a value, whether they differ or not."""
    if isinstance(value, Whole):
        found: Tensor = value.values_PN.index_select(dim + 2, channels_R)
        return found
    if value.dim != dim:
        return channels_of(whole(value, deployed), channels_R, dim, deployed)
    base_N1R = deployed(value.node).index_select(dim + 1, channels_R)
    found = base_N1R.expand(len(value.values_PN1R), *base_N1R.shape).clone()
    same_RS = channels_R[:, None] == value.channels_R[None]
    to, source = same_RS.nonzero(as_tuple=True)
    return found.index_copy_(dim + 2, to, value.values_PN1R.index_select(dim + 2, source))


def with_change(
    node: fx.Node, before: Value | None, channels_R: Tensor, change_PN1R: Tensor, dim: int, deployed: Deployed
) -> Value:
    """`node` where `change` is added to some channels of what it would be without (None: of the deployed DNN)."""
    if before is None:
        base_N1R = deployed(node).index_select(dim + 1, channels_R)
        return Few(node=node, channels_R=channels_R, values_PN1R=base_N1R + change_PN1R, dim=dim)
    if isinstance(before, Few) and before.dim == dim:
        channels = _together(before.channels_R, channels_R)
        values = channels_of(before, channels, dim, deployed)
        values.index_add_(dim + 2, torch.searchsorted(channels, channels_R), change_PN1R)
        return Few(node=node, channels_R=channels, values_PN1R=values, dim=dim)
    everything: Tensor = whole(before, deployed).values_PN.clone()
    return Whole(values_PN=everything.index_add_(dim + 2, channels_R, change_PN1R))


def _together(*channels: Tensor) -> Tensor:
    """All of them, in order, each once."""
    found: Tensor = torch.cat(channels).unique()  # type: ignore[no-untyped-call]
    return found


def few_channels(node: fx.Node, values: Values, deployed: Deployed) -> Value | None:
    """`node` of inputs that differ in few channels, without the other channels; None where that is not possible."""
    if any(isinstance(values.get(n), Whole) for n in node.all_input_nodes):
        return None
    rule = RULES.get(node.target)
    if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        rule = _pointwise
    return None if rule is None else rule(node, values, deployed)


def _pointwise(node: fx.Node, values: Values, deployed: Deployed) -> Value | None:
    """Of several inputs by the rules of broadcasting: all that differ along the same axis, counted from the last."""
    ndim = len(shape_of(node))
    moved = [v for n in node.all_input_nodes if isinstance(v := values.get(n), Few)]
    dim = moved[0].dim
    if any(v.dim != dim or len(shape_of(v.node)) != ndim for v in moved):
        return None
    size = shape_of(node)[dim]
    if any(shape_of(v.node)[dim] != size for v in moved):
        return None
    channels_R = _together(*(v.channels_R for v in moved))

    def few(n: fx.Node) -> Tensor:
        if (value := values.get(n)) is not None:
            return channels_of(value, channels_R, dim, deployed)
        constant, own = deployed.is_constant(n), deployed(n)
        at = dim - ndim + len(shape_of(n)) + (not constant)
        along = own.ndim > at >= (not constant) and own.shape[at] == size and size > 1
        return own.index_select(at, channels_R) if along else own

    if any(
        n not in values and not deployed.is_constant(n) and len(shape_of(n)) != ndim
        for n in node.all_input_nodes
    ):
        return None
    return Few(node=node, channels_R=channels_R, values_PN1R=_call(node, few), dim=dim)


def _call(node: fx.Node, value_of: Callable[[fx.Node], Tensor]) -> Tensor:
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), value_of)
    assert callable(node.target)
    found: Tensor = node.target(*args, **kwargs)
    return found


def _convolution(node: fx.Node, values: Values, deployed: Deployed) -> Value | None:
    x_node, weight_node, bias_node, *geometry = node.args
    groups, transposed = geometry[-1], geometry[3]
    assert isinstance(groups, int)
    assert isinstance(x_node, fx.Node)
    assert isinstance(weight_node, fx.Node)
    x = values.get(x_node)
    if not isinstance(x, Few) or weight_node in values or x.dim != 1 or transposed:
        return None
    weight, shape = deployed(weight_node), x.values_PN1R.shape[:3]
    if groups == 1:
        change = x.values_PN1R - deployed(x_node).index_select(2, x.channels_R)
        own = weight.index_select(1, x.channels_R)
        added = aten.convolution.default(change.flatten(0, 2), own, None, *geometry)
        return Whole(values_PN=added.unflatten(0, shape).add_(deployed(node)))
    if groups != shape_of(x_node)[1]:
        return None
    each = len(weight) // groups  # output channels of an input channel
    out = (x.channels_R[:, None] * each + torch.arange(each, device=weight.device)).flatten()
    bias = deployed(bias_node).index_select(0, out) if isinstance(bias_node, fx.Node) else None
    found = aten.convolution.default(
        x.values_PN1R.flatten(0, 2), weight.index_select(0, out), bias, *geometry[:-1], len(x.channels_R)
    )
    return Few(node=node, channels_R=out, values_PN1R=found.unflatten(0, shape), dim=1)


def _product(node: fx.Node, values: Values, deployed: Deployed) -> Value | None:
    """mm(x, w) and addmm(bias, x, w), of rows that differ in few columns."""
    x_node, weight_node = node.args[-2:]
    assert isinstance(x_node, fx.Node)
    assert isinstance(weight_node, fx.Node)
    x = values.get(x_node)
    others = [n for n in node.all_input_nodes if n is not x_node]
    if not isinstance(x, Few) or x.dim != 1 or node.kwargs or not all(map(deployed.is_constant, others)):
        return None
    change_PN1R = x.values_PN1R - deployed(x_node).index_select(2, x.channels_R)
    added = change_PN1R @ deployed(weight_node).index_select(0, x.channels_R)
    return Whole(values_PN=added.add_(deployed(node)))


def _concatenation(node: fx.Node, values: Values, _: Deployed) -> Value | None:
    parts = node.args[0]
    assert isinstance(parts, Sequence)
    along = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    assert isinstance(along, int)
    along %= len(shape_of(node))
    channels, found, start = [], [], 0
    for part in parts:
        assert isinstance(part, fx.Node)
        value = values.get(part)
        if isinstance(value, Few):
            if value.dim != along:
                return None
            channels.append(value.channels_R + start)
            found.append(value.values_PN1R)
        start += shape_of(part)[along]
    return Few(
        node=node, channels_R=torch.cat(channels), values_PN1R=torch.cat(found, dim=along + 2), dim=along
    )


def _mean(node: fx.Node, values: Values, _: Deployed) -> Value | None:
    x = _first(node, values)
    dims, keep = node.args[1], len(node.args) > 2 and bool(node.args[2])
    assert isinstance(dims, Sequence)
    over = [int(d) % len(shape_of(x.node)) for d in dims]  # type: ignore[arg-type]  # whole numbers
    if x.dim in over or 0 in over or node.kwargs:
        return None
    found = x.values_PN1R.mean([d + 2 for d in over], keepdim=keep)
    dim = x.dim if keep else x.dim - sum(d < x.dim for d in over)
    return Few(node=node, channels_R=x.channels_R, values_PN1R=found, dim=dim)


def _pooling(node: fx.Node, values: Values, _: Deployed) -> Value | None:
    x = _first(node, values)
    if x.dim != 1 or len(shape_of(x.node)) != 4:
        return None
    assert callable(node.target)
    found = node.target(x.values_PN1R.flatten(0, 2), *node.args[1:], **node.kwargs)
    return Few(
        node=node, channels_R=x.channels_R, values_PN1R=found.unflatten(0, x.values_PN1R.shape[:3]), dim=1
    )


def _permutation(node: fx.Node, values: Values, _: Deployed) -> Value | None:
    x, dims = _first(node, values), node.args[1]
    assert isinstance(dims, Sequence)
    order = [int(d) % len(dims) for d in dims]  # type: ignore[arg-type]  # whole numbers
    found = x.values_PN1R.permute(0, 1, *(d + 2 for d in order))
    return Few(node=node, channels_R=x.channels_R, values_PN1R=found, dim=order.index(x.dim))


def _new_shape(node: fx.Node, values: Values, _: Deployed) -> Value | None:
    """A shape in which the channels are an axis of their own again, with as much before it."""
    x, after = _first(node, values), shape_of(node)
    before = shape_of(x.node)
    if math.prod(before) != math.prod(after):
        return None
    for dim, size in enumerate(after):
        if size == before[x.dim] and math.prod(after[:dim]) == math.prod(before[: x.dim]):
            shape = (*x.values_PN1R.shape[:2], *after[:dim], len(x.channels_R), *after[dim + 1 :])
            return Few(node=node, channels_R=x.channels_R, values_PN1R=x.values_PN1R.reshape(shape), dim=dim)
    return None


def _first(node: fx.Node, values: Values) -> Few:
    assert isinstance(node.args[0], fx.Node)
    value = values[node.args[0]]
    assert isinstance(value, Few)
    return value


RULES: dict[Any, Rule] = {
    aten.convolution.default: _convolution,
    aten.mm.default: _product,
    aten.addmm.default: _product,
    aten.cat.default: _concatenation,
    aten.mean.dim: _mean,
    aten.avg_pool2d.default: _pooling,
    aten._adaptive_avg_pool2d.default: _pooling,
    aten.permute.default: _permutation,
    **dict.fromkeys(
        (
            aten.view.default,
            aten._unsafe_view.default,
            aten.squeeze.dim,
            aten.squeeze.dims,
            aten.unsqueeze.default,
            aten.clone.default,
            aten.alias.default,
            aten.detach.default,
        ),
        _new_shape,
    ),
}

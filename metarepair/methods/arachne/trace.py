"""A DNN and the weights that may change in, its operations as a graph out: for one image, with marks at those weights.

A mark is added to the output of each layer whose weights may change: what they change can be put in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd

from tasks.errors import ConfigError
from tasks.records import Ints

# B images, C channels, W weights that may change

aten = torch.ops.aten
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True, kw_only=True)
class Places:
    """W weights of a DNN: for each the name of its layer, and its place in the flattened weight of that layer."""

    layers: tuple[str, ...]
    flat_W: Ints

    def __len__(self) -> int:
        return len(self.layers)

    def of(self, layer: str) -> Ints:
        """Which of the W weights are the layer's."""
        return np.array([i for i, name in enumerate(self.layers) if name == layer], np.int64)

    def values(self, module: nn.Module) -> Tensor:
        """The weights [W] as they are in the module."""
        found = [
            weight_of(module, name).detach().reshape(-1)[int(flat)]
            for name, flat in zip(self.layers, self.flat_W, strict=True)
        ]
        return torch.stack(found)

    @torch.no_grad()
    def fill(self, module: nn.Module, values_W: Tensor) -> None:
        """Sets the weights in the module."""
        for name, flat, value in zip(self.layers, self.flat_W, values_W, strict=True):
            weight = weight_of(module, name)
            weight[tuple(int(i) for i in np.unravel_index(int(flat), weight.shape))] = value


def weight_of(module: nn.Module, layer: str) -> Tensor:
    """The weight of a layer by the layer's name."""
    return module.get_parameter(f"{layer}.weight")


def layers_of(module: nn.Module) -> dict[str, Layer]:
    """Dense and convolution layers by name, one for each weight that may change (requires_grad).

    Those that compute their weight from others (weight norm, standardised weights) are left out: what they multiply
    by is no parameter.
    """
    found: dict[str, Layer] = {}
    known = set[int]()
    for name, layer in module.named_modules():
        if isinstance(layer, LAYERS) and _is_plain(layer) and id(layer.weight) not in known:
            known.add(id(layer.weight))
            found[name] = layer
    return found


def _is_plain(layer: Layer) -> bool:
    kind = next(k for k in LAYERS if isinstance(layer, k))
    same = all(
        getattr(type(layer), name, None) is getattr(kind, name, None) for name in ("forward", "_conv_forward")
    )
    weight = layer._parameters.get("weight")
    return same and isinstance(weight, nn.Parameter) and weight.requires_grad


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of a layer whose weights may change: what goes in, and the addition of the mark to what comes out."""

    layer: str
    entered: fx.Node
    marked: fx.Node


@dataclass(frozen=True, kw_only=True)
class Traced:
    """Operations from `image` [1, C, H, W] to `logits` [1, K]; the calls by the node where their mark is added."""

    module: fx.GraphModule
    image: fx.Node
    logits: fx.Node
    calls: dict[fx.Node, Call]


@torch.no_grad()
def trace(module: nn.Module, image_1CHW: Tensor, names: Sequence[str]) -> Traced:
    """The operations of `module` in evaluation mode, without those in place. Raises ConfigError where it cannot be."""
    called = _layers_called(module, image_1CHW, names)
    marks = [image_1CHW.new_zeros(()) for _ in called]

    def run(image: Tensor, *marks: Tensor) -> tuple[Tensor, ...]:
        entered: list[Tensor] = []

        def mark(_: str, layer_input: Tensor, layer_output: Tensor) -> Tensor:
            entered.append(layer_input.clone())  # as it is now: the DNN may change it in place
            return layer_output + marks[len(entered) - 1]

        # Attention as plain products: fused kernels cannot be mapped over candidates.
        with _watching(module, names, mark), sdpa_kernel(SDPBackend.MATH):
            return (module(image), *entered)

    try:
        graph = make_fx(functionalize(run), decomposition_table=dict(_AS_ONE_STEP))(image_1CHW, *marks)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ConfigError(
            f"arachne replays a DNN from its operations, and those of {type(module).__name__} cannot be recorded "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Leave arachne out for this DNN."
        ) from error
    return _read(graph, called)


def _layers_called(module: nn.Module, image_1CHW: Tensor, names: Sequence[str]) -> list[str]:
    """Names of the layers in the order of their calls."""
    called: list[str] = []

    def note(name: str, _: Tensor, layer_output: Tensor) -> Tensor:
        called.append(name)
        return layer_output

    with _watching(module, names, note):
        module(image_1CHW)
    return called


class _watching(ExitStack):  # noqa: N801  a context manager, as contextlib names them
    """Calls `seen(name, input, output)` at each call of the layers, and of others with the same weight."""

    def __init__(
        self, module: nn.Module, names: Sequence[str], seen: Callable[[str, Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__()
        names_of = {id(weight_of(module, name)): name for name in names}
        for layer in module.modules():
            name = names_of.get(id(getattr(layer, "weight", None)))
            if name is not None:
                hook = partial(_hook, seen, name)
                self.callback(layer.register_forward_hook(hook, prepend=True, with_kwargs=True).remove)


def _hook(
    seen: Callable[[str, Tensor, Tensor], Tensor],
    name: str,
    _: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: dict[str, Any],
    out: Tensor,
) -> Tensor:
    return seen(name, args[0] if args else kwargs["input"], out)


def _read(graph: fx.GraphModule, called: Sequence[str]) -> Traced:
    image, *marks = (node for node in graph.graph.nodes if node.op == "placeholder")
    (out,) = (node for node in graph.graph.nodes if node.op == "output")
    logits, *copies = out.args[0]
    entered = [copy.args[0] for copy in copies]  # nothing is changed in place any more
    out.args = ((logits,),)
    for node in graph.graph.find_nodes(op="call_function", target=aten.as_strided_.default):
        if (
            sum(size > 1 for size in node.meta["tensor_meta"].shape) <= 1
        ):  # a pooled image: only strides are new
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    marked = [next(iter(mark.users)) for mark in marks]
    calls = [
        Call(layer=name, entered=node, marked=at)
        for name, node, at in zip(called, entered, marked, strict=True)
    ]
    return Traced(module=graph, image=image, logits=logits, calls={call.marked: call for call in calls})


def _batch_norm_as_one_step(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """Batch norm with stored statistics, as one product and sum for each channel."""
    eps = rest[-1]
    scale_C = torch.rsqrt(variance + eps)
    scale_C = scale_C if weight is None else scale_C * weight
    shift_C = -mean * scale_C if bias is None else bias - mean * scale_C
    shape = (1, -1) + (1,) * (x.ndim - 2)
    unused = x.new_empty(0)
    return torch.addcmul(shift_C.view(shape), x, scale_C.view(shape)), unused, unused, unused


_AS_ONE_STEP = {
    aten.native_batch_norm.default: lambda *a: _batch_norm_as_one_step(*a)[:3],
    aten._native_batch_norm_legit_no_training.default: lambda *a: _batch_norm_as_one_step(*a)[:3],
    aten.cudnn_batch_norm.default: _batch_norm_as_one_step,
    aten.miopen_batch_norm.default: lambda *a: _batch_norm_as_one_step(*a)[:3],
}


def channel_dim(layer: Layer, ndim: int) -> int:
    """Where a layer has its channels, in what goes in and comes out."""
    return 1 if isinstance(layer, _ConvNd) else ndim - 1

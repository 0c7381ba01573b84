"""Speeds up a network for evaluation: moves batch norms and paddings into the convolutions.

In evaluation a batch norm is a scale and a shift for each channel, which the convolution before it can apply.
TensorFlow's "same" padding of an even map at stride 2 adds one more row and column behind than in front, for which
PyTorch copies the map. A kernel with an additional row and column of zeros needs no copy.

Legend: B images, C channels, H W pixels. Source: torch.nn.utils.fusion; timm's Conv2dSame, BatchNormAct2d.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.fx import Graph, Node, Tracer
from torch.nn.utils.fusion import fuse_conv_bn_weights

CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
NORMS = (nn.BatchNorm2d, BatchNormAct2d)


def fold_batch_norms(network: nn.Module) -> int:
    """Fold, in place, each batch norm that is the only consumer of a convolution's output.

    The network is put into evaluation mode. Returns the number of folded batch norms. It is 0 if the forward pass
    cannot be traced (it branches on the values of its input), which costs speed and changes nothing else.
    """
    network.eval()
    try:
        graph = _LayerTracer().trace(network)
    except Exception:  # tracing runs the model's code without a tensor, so it may raise anything
        return 0
    pairs = list(_pairs(network, graph))
    for conv_name, norm_name in pairs:
        _fold(network, conv_name, norm_name)
    return len(pairs)


class _LayerTracer(Tracer):
    """Traces convolutions and batch norms, including timm's, as single nodes of the graph."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, CONVOLUTIONS + NORMS) or super().is_leaf_module(m, module_qualified_name)


def _pairs(network: nn.Module, graph: Graph) -> Iterator[tuple[str, str]]:
    """The names of each convolution and the batch norm that alone uses its output."""
    layers = dict(network.named_modules())
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    # A layer whose weights are also read elsewhere, as tied weights are, must keep them.
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}

    def is_called_once(node: object, kinds: tuple[type[nn.Module], ...]) -> bool:
        if not isinstance(node, Node) or node.op != "call_module":
            return False
        name = str(node.target)
        return _is_plain(layers[name], kinds) and calls[name] == 1 and name not in read

    for node in graph.nodes:
        if is_called_once(node, NORMS) and layers[str(node.target)].running_mean is not None:
            before = node.args[0] if node.args else None
            if isinstance(before, Node) and is_called_once(before, CONVOLUTIONS) and len(before.users) == 1:
                yield str(before.target), str(node.target)


def _is_plain(layer: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a layer does only what its class does; subclasses, parametrizations and hooks may do more."""
    return type(layer) in kinds and not layer._forward_hooks and not layer._forward_pre_hooks


def _fold(network: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # In float64, rounded once: the error of a rounded weight is the same for all pixels, so pooling does not reduce it.
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(),
        None if conv.bias is None else conv.bias.double(),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        None if norm.weight is None else norm.weight.double(),
        None if norm.bias is None else norm.bias.double(),
    )
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    network.set_submodule(norm_name, rest)


def absorb_same_padding(network: nn.Module, example_BCHW: Tensor) -> int:
    """Replace, in place, timm's Conv2dSame with plain convolutions that include the padding; return their number.

    The result is only right for images of the example's size, since the padding depends on the size of the map.
    """
    sizes: dict[str, set[tuple[int, int]]] = defaultdict(set)

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return layer.register_forward_pre_hook(lambda _, inputs: sizes[name].add(tuple(inputs[0].shape[2:])))

    same = [
        (n, m) for n, m in network.named_modules() if _is_plain(m, (Conv2dSame,)) and m.dilation == (1, 1)
    ]
    handles = [watch(name, layer) for name, layer in same]
    with torch.inference_mode():
        network(example_BCHW)
    for handle in handles:
        handle.remove()
    seen = {name: sizes[name].pop() for name, _ in same if len(sizes[name]) == 1}
    for name, size in seen.items():
        conv = network.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        network.set_submodule(name, _padding_itself(conv, size))
    return len(seen)


def _padding_itself(conv: nn.Conv2d, size: tuple[int, int]) -> nn.Conv2d:
    """The convolution for maps of `size`, with the `total` rows and columns of padding included, half on each side.

    If `total` is odd, "same" padding has one more row behind. The row in front is then padded as well, and the kernel
    gets a row of zeros for it.
    """
    axes = zip(size, conv.kernel_size, conv.stride, strict=True)
    total = [max((-(-pixels // stride) - 1) * stride + kernel - pixels, 0) for pixels, kernel, stride in axes]
    row, column = (each % 2 for each in total)
    height, width = conv.kernel_size
    made = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (height + row, width + column),
        (conv.stride[0], conv.stride[1]),
        ((total[0] + row) // 2, (total[1] + column) // 2),
        groups=conv.groups,
        bias=conv.bias is not None,
        device="meta",
    )
    made.weight = nn.Parameter(F.pad(conv.weight.detach(), (column, 0, row, 0)), requires_grad=False)
    made.bias = conv.bias
    return made

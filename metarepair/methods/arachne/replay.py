"""Images and many candidates for a few weights in, the logits of all candidates out.

The DNN is not run for each. What no candidate changes is computed once and kept. From the first layer with a changed
weight on, the operations run for all candidates and images at once, on the channels that differ alone where the
operation allows (channels.py). The change of a layer's output is one product for all candidates: of its input
with the changes of its weights.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.func import vmap
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from metarepair.methods.arachne.channels import (
    Few,
    Value,
    Values,
    Whole,
    channels_of,
    few_channels,
    shape_of,
    whole,
    with_change,
)
from metarepair.methods.arachne.trace import Call, Layer, Places, Traced, channel_dim, trace
from metarepair.stateless import seeded
from tasks.errors import ConfigError

# P candidates, N images, W weights that may change, R output and J input channels of a layer that these weights join

CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
TOLERANCE = {torch.float64: 1e-9}  # of the logits, relative to the largest; others 1e-2


@dataclass(frozen=True, kw_only=True)
class Part:
    """The weights of one layer that may change: which of the W, and where in a kernel of only their channels."""

    layer: Layer
    which: Tensor
    outputs_R: Tensor
    inputs_J: Tensor
    at: Tensor
    shape: tuple[int, ...]

    def kernels(self, changes_PW: Tensor) -> Tensor:
        """The changes as kernels [P, R, J, ...]."""
        found = changes_PW.new_zeros(len(changes_PW), math.prod(self.shape))
        found[:, self.at] = changes_PW[:, self.which]
        return found.view(-1, *self.shape)


def part_of(layer: Layer, places: Places, name: str) -> Part:
    """The weights of `places` in `layer`. A grouped convolution's input channels are counted over all groups."""
    which, weight = places.of(name), layer.weight
    output, group_input, *kernel = np.unravel_index(places.flat_W[which], tuple(weight.shape))
    groups = getattr(layer, "groups", 1)
    joined = output // (weight.shape[0] // groups) * weight.shape[1] + group_input
    outputs, r = np.unique(output, return_inverse=True)
    inputs, j = np.unique(joined, return_inverse=True)
    shape = (len(outputs), len(inputs), *weight.shape[2:])
    at = np.ravel_multi_index((r, j, *kernel), shape)
    on = partial(torch.tensor, device=weight.device)
    return Part(
        layer=layer,
        which=on(which),
        outputs_R=on(outputs),
        inputs_J=on(inputs),
        at=on(at),
        shape=shape,
    )


@dataclass(frozen=True)
class KeptValues:
    """What the deployed DNN has at its nodes for N images; `asked` collects which of these were needed."""

    num_images: int
    constants: dict[fx.Node, Any]
    values: dict[fx.Node, Any]
    asked: set[fx.Node] = field(default_factory=set)

    def is_constant(self, node: fx.Node) -> bool:
        return node in self.constants

    def __call__(self, node: fx.Node) -> Any:
        if node in self.constants:
            return self.constants[node]
        self.asked.add(node)
        return self.values[node]


class Replay:
    """A DNN as operations, for candidates of the weights at `places`.

    image_1CHW: any image, as the DNN takes it. After construction, `bytes_deployed` and `bytes_moved` say what an image
    takes that is kept, and at most at once for an image and candidate. Raises ConfigError for a DNN that does not give,
    when it is replayed, what it gives when it is run.
    """

    def __init__(self, module: nn.Module, image_1CHW: Tensor, places: Places) -> None:
        self.module, self.places = module, places
        names = list(dict.fromkeys(places.layers))
        self.before_W = places.values(module)
        self.parts = {name: part_of(module.get_submodule(name), places, name) for name in names}  # type: ignore[arg-type]
        self.traced: Traced = trace(module, image_1CHW, names)
        self._sort_nodes()
        self.bytes_moved = self.bytes_deployed = 0
        self._needed: set[fx.Node] | None = None  # all, until it is known
        self._learn(image_1CHW)

    def _sort_nodes(self) -> None:
        """Which nodes no image changes, which no candidate changes, and which node needs another last."""
        nodes = [n for n in self.traced.module.graph.nodes if n.op in ("get_attr", "call_function")]
        with_image, moved = {self.traced.image}, set(self.traced.calls)
        self.constants: dict[fx.Node, Any] = {}
        for node in nodes:
            inputs = set(node.all_input_nodes)
            if node in moved or inputs & moved:
                moved.add(node)
            if node.op == "get_attr":
                self.constants[node] = operator.attrgetter(str(node.target))(self.traced.module)
            elif node in self.traced.calls or inputs & with_image:
                with_image.add(node)
            else:
                self.constants[node] = _run(node, [self.constants[n] for n in node.all_input_nodes])
        self.same_nodes = [n for n in nodes if n in with_image]
        self.moved_nodes = [n for n in nodes if n in moved]
        self._done_with: dict[fx.Node, list[fx.Node]] = {}
        last = {n: later for later in nodes for n in self._inputs(later)}
        for node, user in last.items():
            if node is not self.traced.logits:
                self._done_with.setdefault(user, []).append(node)

    def _inputs(self, node: fx.Node) -> list[fx.Node]:
        """A mark needs what enters its layer, too."""
        call = self.traced.calls.get(node)
        return [*node.all_input_nodes, *([call.entered] if call else [])]

    @torch.no_grad()
    def _learn(self, image_1CHW: Tensor) -> None:
        """Replays one image with one candidate: which values of the deployed DNN are needed, how large, and right."""
        kept = self.deployed(image_1CHW)
        with seeded(image_1CHW.device, 0):
            random_1W = self.before_W + torch.randn_like(self.before_W)[None]
        logits_1K = self.logits(kept, random_1W)[0]
        self._needed = kept.asked | {self.traced.logits}
        self.bytes_deployed = sum(_bytes(kept.values[n]) for n in self._needed)
        self._refuse_other_logits(image_1CHW, random_1W[0], logits_1K)

    def _refuse_other_logits(self, image_1CHW: Tensor, values_W: Tensor, found_1K: Tensor) -> None:
        self.places.fill(self.module, values_W)
        try:
            right_1K = self.module(image_1CHW)
        finally:
            self.places.fill(self.module, self.before_W)
        allowed = TOLERANCE.get(right_1K.dtype, 1e-2) * float(right_1K.abs().max())
        if found_1K.shape != right_1K.shape or not bool(((found_1K - right_1K).abs() <= allowed).all()):
            raise ConfigError(
                f"arachne replays a DNN from its operations, and {type(self.module).__name__} gives other logits so "
                "than when it is run: what it computes depends on more than its input and weights, or on their "
                "values. Leave arachne out for this DNN."
            )

    @torch.no_grad()
    def deployed(self, images_NCHW: Tensor) -> KeptValues:
        """What the deployed DNN has at the nodes that a replay needs."""
        values: dict[fx.Node, Any] = {self.traced.image: images_NCHW[:, None]}
        for node in self.same_nodes:
            call = self.traced.calls.get(node)
            if call is not None:
                values[node] = values[node.args[0]]  # the mark adds nothing
            else:
                inputs = node.all_input_nodes
                given = [self.constants[n] if n in self.constants else values[n] for n in inputs]
                values[node] = _over(node, given, [[None if n in self.constants else 0 for n in inputs]])
            for done in self._done_with.get(node, ()):
                if self._needed is not None and done not in self._needed:
                    values.pop(done, None)
        return KeptValues(len(images_NCHW), self.constants, values)

    @torch.no_grad()
    def logits(self, kept: KeptValues, values_PW: Tensor) -> Tensor:
        """Logits [P, N, K] of the candidates."""
        changes_PW = values_PW - self.before_W
        values: Values = {}
        for node in self.moved_nodes:
            call = self.traced.calls.get(node)
            if call is not None:
                values[node] = self._changed(call, values, kept, changes_PW)
            else:
                values[node] = few_channels(node, values, kept) or self._all_channels(node, values, kept)
            self.bytes_moved = max(
                self.bytes_moved, _bytes(values[node]) // (len(changes_PW) * kept.num_images)
            )
            for done in self._done_with.get(node, ()):
                values.pop(done, None)
        found: Tensor = whole(values[self.traced.logits], kept).values_PN
        return found.squeeze(2)

    def _changed(self, call: Call, values: Values, kept: KeptValues, changes_PW: Tensor) -> Value:
        """What comes out of a layer whose weights are changed."""
        part, ndim = self.parts[call.layer], len(shape_of(call.marked))
        dim = channel_dim(part.layer, ndim)
        kernels_PRJ = part.kernels(changes_PW)
        entered = values.get(call.entered)
        if entered is None:
            change = _of_one_input(part, kept(call.entered).index_select(dim + 1, part.inputs_J), kernels_PRJ)
        else:
            change = _of_own_inputs(part, channels_of(entered, part.inputs_J, dim, kept), kernels_PRJ)
        before = call.marked.args[0]
        assert isinstance(before, fx.Node)
        return with_change(call.marked, values.get(before), part.outputs_R, change, dim, kept)

    def _all_channels(self, node: fx.Node, values: Values, kept: KeptValues) -> Whole:
        """The operation for all candidates and images, on all channels."""
        given, candidates, images = [], [], []
        for n in node.all_input_nodes:
            if (value := values.get(n)) is not None:
                values[n] = value = whole(value, kept)  # for others that need it, too
                given.append(value.values_PN)
            else:
                given.append(kept(n))
            candidates.append(0 if value is not None else None)
            images.append(None if kept.is_constant(n) else 0)
        return Whole(values_PN=_over(node, given, [candidates, images]))


def _of_one_input(part: Part, x_N1J: Tensor, kernels_PRJ: Tensor) -> Tensor:
    """The change [P, N, 1, R, ...] of a layer's output where its input is the same for all candidates: one product."""
    outputs = kernels_PRJ.shape[:2]
    if isinstance(part.layer, nn.Linear):
        found = x_N1J @ kernels_PRJ.flatten(0, 1).mT
        return found.view(*found.shape[:-1], *outputs).movedim(-2, 0)
    found = _convolve(part.layer, x_N1J.flatten(0, 1), kernels_PRJ.flatten(0, 1))
    return found.reshape(len(found), *outputs, *found.shape[2:]).movedim(1, 0).unsqueeze(2)


def _of_own_inputs(part: Part, x_PN1J: Tensor, kernels_PRJ: Tensor) -> Tensor:
    """The change [P, N, 1, R, ...] where each candidate has an input of its own."""
    if isinstance(part.layer, nn.Linear):
        found: Tensor = vmap(F.linear)(x_PN1J, kernels_PRJ)
        return found
    convolve = vmap(partial(_convolve, part.layer))
    found = convolve(x_PN1J.flatten(1, 2), kernels_PRJ)
    return found.unsqueeze(2)


def _convolve(layer: Layer, x_NJ: Tensor, kernels_RJ: Tensor) -> Tensor:
    """The convolution of `layer` with other kernels, in one group."""
    assert isinstance(layer, _ConvNd)
    padding: Any = layer.padding
    if layer.padding_mode != "zeros":
        x_NJ = F.pad(x_NJ, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    run = CONVOLUTIONS[kernels_RJ.ndim]
    return run(x_NJ, kernels_RJ, None, layer.stride, padding, layer.dilation)


def _over(node: fx.Node, given: Sequence[Any], levels: Sequence[Sequence[int | None]]) -> Any:
    """The node's operation mapped over axes of what it is given, the outermost level first."""
    found: Callable[..., Any] = lambda *values: _run(node, values)  # noqa: E731  it is wrapped again and again
    for dims in reversed(levels):
        if any(dim is not None for dim in dims):
            found = vmap(found, in_dims=tuple(dims))
    return found(*given)


def _run(node: fx.Node, given: Sequence[Any]) -> Any:
    """The node's operation with these values of its inputs."""
    values = dict(zip(node.all_input_nodes, given, strict=True))
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    # With more axes in front, memory may be laid out so that it cannot be viewed.
    target = torch.ops.aten.reshape.default if node.target is torch.ops.aten.view.default else node.target
    assert callable(target)
    return target(*args, **kwargs)


def _bytes(value: Any) -> int:
    """What a value takes, of whatever kind."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Few):
        return _bytes(value.values_PN1R)
    if isinstance(value, Whole):
        return _bytes(value.values_PN)
    return sum(map(_bytes, value)) if isinstance(value, (tuple, list)) else 0

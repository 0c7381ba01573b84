"""The logits of many candidates for a few weights, without running the whole DNN for each of them.

Up to the first function of torch that takes a searched weight, all candidates have the same values. The DNN is run to
there once for the images, and what later functions may need is kept. The rest is run for all candidates at once under
torch.func.vmap. There the product of a layer's input with the changes of its weights is added to what the deployed
layer gives. A DNN that cannot be run so is run for one candidate after the other, and `note` says so.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functionalize, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from metarepair.methods.arachne.localise import Places, weight_of
from metarepair.models.wrappers import copied

# P candidates, N images, W weights, R output and J input channels of a layer that its searched weights join

PRODUCTS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
TOLERANCE = {torch.float64: 1e-9}  # of the logits, relative to the largest; others 1e-2
# Images, and the functions up to the first that takes a searched weight, each with its result.
Kept = tuple[Tensor, list[tuple[Any, Any]]]


class Part:
    """The searched weights of one layer, as a kernel [R, J, ...] of only the channels that they join."""

    def __init__(self, module: nn.Module, places: Places, name: str) -> None:
        weight, which = weight_of(module, name), places.of(name)
        output, group_input, *kernel = np.unravel_index(places.flat_W[which], weight.shape)
        group = output * getattr(module.get_submodule(name), "groups", 1) // len(weight)
        outputs, r = np.unique(output, return_inverse=True)
        inputs, j = np.unique(group * weight.shape[1] + group_input, return_inverse=True)
        self.shape = (len(outputs), len(inputs), *weight.shape[2:])
        at = np.ravel_multi_index((r, j, *kernel), self.shape)
        self.which, self.outputs_R, self.inputs_J, self.at = (
            torch.from_numpy(rows).to(weight.device) for rows in (which, outputs, inputs, at)
        )

    def changed(self, product: Any, args: Sequence[Any], output: Tensor, changes_W: Tensor) -> Tensor:
        """What product(*args) gives with the changes of the weights; `output` is what it gives without."""
        channels = 1 - len(self.shape)  # their axis, counted from the last
        x, geometry = args[0].index_select(channels, self.inputs_J), args[3:-1]  # the last is groups: 1 here
        kernel = changes_W.new_zeros(math.prod(self.shape)).index_copy(0, self.at, changes_W[self.which])
        change = product(x, kernel.view(self.shape), None, *geometry)
        return output.index_add(channels, self.outputs_R, change)


class Candidates:
    """A DNN with candidates for its weights at `places`; `images_NCHW` are one or more to try it with.

    After construction, `bytes_kept` says what is kept of an image, and `bytes_moved` what a function gives at most for
    one image and candidate.
    """

    def __init__(self, module: nn.Module, places: Places, images_NCHW: Tensor) -> None:
        self.module, self.places, self.before_W = copied(module).eval(), places, places.values(module)
        weights = {name: id(weight_of(self.module, name)) for name in places.layers}
        self._parts = {weight: Part(self.module, places, name) for name, weight in weights.items()}
        self.note: str | None = None
        self.bytes_kept, self.bytes_moved = images_NCHW[0].nbytes, 0
        self._unless_refused(self._try, images_NCHW[:1])

    @torch.no_grad()
    def keep(self, images_NCHW: Tensor) -> Kept:
        """What candidates need of the deployed DNN on these images."""
        return self._unless_refused(self._record, images_NCHW) or (images_NCHW, [])

    @torch.no_grad()
    def logits(self, kept: Kept, values_PW: Tensor) -> Tensor:
        """Logits [P, N, K] of the candidates."""
        found = self._unless_refused(self._at_once, kept, values_PW)
        return self._one_by_one(kept, values_PW) if found is None else found

    def _unless_refused(self, work: Callable[..., Any], *args: Any) -> Any:
        """What the work gives; None, with a note, for a DNN that cannot be run for all candidates at once."""
        try:
            return None if self.note else work(*args)
        except (RuntimeError, TypeError, ValueError) as error:
            self.note = (
                f"candidates were run one after the other: {type(self.module).__name__} cannot be run for all at once "
                f"({type(error).__name__}: {str(error).splitlines()[0][:200]})"
            )

    def _record(self, images_NCHW: Tensor) -> Kept:
        with _Run(self._parts) as run:
            self.module(images_NCHW.clone())  # it may change them in place
        if run.called != self._parts.keys():
            raise ValueError("a layer is not called")
        self.bytes_moved = run.largest // len(images_NCHW)
        return images_NCHW, run.calls

    def _at_once(self, kept: Kept, values_PW: Tensor) -> Tensor:
        images_NCHW, calls = kept

        def rest(changes_W: Tensor, shared: dict[int, Any]) -> Any:
            own = tree_map_only(Tensor, Tensor.clone, shared)  # what follows may change them in place
            given = ((func, own.get(n, found)) for n, (func, found) in enumerate(calls))
            with _Run(self._parts, given, changes_W):
                return self.module(images_NCHW.clone())

        # Fused attention cannot be mapped. A tensor of all candidates cannot be added in place to one that they share,
        # so changes in place are made functional. vmap loops over operations that it has no rule for, and warns.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            shared = {n: found for n, (_, found) in enumerate(calls) if _nbytes(found)}
            found: Tensor = vmap(functionalize(rest), in_dims=(0, None))(values_PW - self.before_W, shared)
        return found

    def _one_by_one(self, kept: Kept, values_PW: Tensor) -> Tensor:
        found = []
        for values_W in values_PW:
            self.places.fill(self.module, values_W)
            found.append(self.module(kept[0].clone()))
        self.places.fill(self.module, self.before_W)
        return torch.stack(found)

    @torch.no_grad()
    def _try(self, image_1CHW: Tensor) -> None:
        """Raise ValueError where a candidate with other weights has not the logits of the DNN with these weights."""
        kept = self._record(image_1CHW)
        self.bytes_kept = _nbytes(kept)
        other_1W = self.before_W + torch.linspace(0.5, 1.5, len(self.before_W)).to(self.before_W)[None]
        found, right = self._at_once(kept, other_1W), self._one_by_one(kept, other_1W)
        allowed = TOLERANCE.get(right.dtype, 1e-2) * right.abs().max()
        if found.shape != right.shape or not bool(((found - right).abs() <= allowed).all()):
            raise ValueError("it gives other logits then")


class _Run(TorchFunctionMode):
    """A run of the DNN: as it is deployed, or with changes of the searched weights.

    The first notes in `calls` the functions up to the first that takes a searched weight, with their results. Of the
    tensors among these it keeps those that are still referred to then: nothing can use the others later. The second is
    given these calls, and gives their results in place of running them.
    """

    def __init__(
        self, parts: dict[int, Part], calls: Iterable[Any] = (), changes_W: Tensor | None = None
    ) -> None:
        super().__init__()
        self.parts, self.changes_W = parts, changes_W
        self.given: Iterator[Any] = iter(calls)
        self.calls, self.called, self.largest = list[Any](), set[int](), 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call: tuple[Any, Any] = next(self.given, (None, None))
        noted, found = call
        if noted is None:
            found = (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))
        elif func != noted:
            raise ValueError("its functions are others when it is run again")
        searched = self.parts.keys() & {id(x) for x in args} if isinstance(found, Tensor) else set[int]()
        if searched and func not in PRODUCTS:
            raise ValueError(f"{func.__name__} takes a searched weight")
        if self.changes_W is None:
            self._note(func, found, searched)
            return found
        for weight in searched:
            found = self.parts[weight].changed(func, args, found, self.changes_W)
        return found

    def _note(self, func: Any, found: Any, searched: set[int]) -> None:
        if not self.called:
            self.calls.append((func, tree_map_only(Tensor, weakref.ref, found)))
            if searched:
                self.calls = tree_map_only(weakref.ref, _if_alive, self.calls)
        self.called |= searched
        self.largest = max(self.largest, _nbytes(found) if self.called else 0)


def _if_alive(reference: weakref.ref[Tensor]) -> Tensor:
    tensor = reference()
    return torch.empty(0) if tensor is None else tensor.clone()  # what follows may change it in place


def _nbytes(result: Any) -> int:
    return sum(x.nbytes for x in tree_leaves(result) if isinstance(x, Tensor))


def _batch_norm(x: Tensor, mean_C: Tensor, variance_C: Tensor, **given: Any) -> Tensor:
    """Batch norm with stored statistics as one product and sum, where vmap's own rule takes four passes."""
    if given["training"]:
        return F.batch_norm(x, mean_C, variance_C, **given)
    scale_C = torch.rsqrt(variance_C + given["eps"])
    scale_C = scale_C if given["weight"] is None else scale_C * given["weight"]
    shift_C = -mean_C * scale_C if given["bias"] is None else given["bias"] - mean_C * scale_C
    shape = (-1, *[1] * (x.ndim - 2))
    return torch.addcmul(shift_C.view(shape), x, scale_C.view(shape)).to(x.dtype)

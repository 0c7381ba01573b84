"""Compute the logits of many candidates for a few weights, without running the whole DNN for each of them.

Up to the first torch function that takes a searched weight, all candidates have the same values. The DNN is run up to
there once for the images, and the tensors that later functions may need are kept. The rest runs for all candidates at
once under torch.func.vmap: there, the product of a layer's input with the changes of its weights is added to the output
of the deployed layer. A DNN that cannot be run this way is run for one candidate after the other, and `note` says so.
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

# P candidates, N images, W weights, R output and J input channels of a layer that its searched weights connect

PRODUCTS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
TOLERANCE = {torch.float64: 1e-9}  # of the logits, relative to the largest; 1e-2 for other types
# The images, and the functions up to the first that takes a searched weight, each with its result.
Kept = tuple[Tensor, list[tuple[Any, Any]]]


class CandidatePart:
    """The searched weights of one layer, as a kernel [R, J, ...] with only the channels that they connect."""

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
        """Return product(*args) with the changed weights; `output` is product(*args) with the deployed ones."""
        channels = 1 - len(self.shape)  # the axis of the channels, counted from the last
        x, geometry = (
            args[0].index_select(channels, self.inputs_J),
            args[3:-1],
        )  # the last argument is groups, which is 1 here
        kernel = changes_W.new_zeros(math.prod(self.shape)).index_copy(0, self.at, changes_W[self.which])
        change = product(x, kernel.view(self.shape), None, *geometry)
        return output.index_add(channels, self.outputs_R, change)


class Candidates:
    """Runs a DNN with candidates for its weights at `places`; `images_NCHW` are one or more images to test this with.

    Attributes: bytes_kept: what is kept per image. bytes_moved: the largest result of a function for one image and
    candidate. note: why candidates are run one after the other; None if they run all at once.
    """

    def __init__(self, module: nn.Module, places: Places, images_NCHW: Tensor) -> None:
        self.module, self.places, self.before_W = copied(module).eval(), places, places.values(module)
        weights = {name: id(weight_of(self.module, name)) for name in places.layers}
        self._parts = {weight: CandidatePart(self.module, places, name) for name, weight in weights.items()}
        self.note: str | None = None
        self.bytes_kept, self.bytes_moved = images_NCHW[0].nbytes, 0
        self._unless_refused(self._try, images_NCHW[:1])

    @torch.no_grad()
    def keep(self, images_NCHW: Tensor) -> Kept:
        """Return what candidates need from the deployed DNN on these images."""
        return self._unless_refused(self._record, images_NCHW) or (images_NCHW, [])

    @torch.no_grad()
    def logits(self, kept: Kept, values_PW: Tensor) -> Tensor:
        """Return the logits [P, N, K] of the candidates."""
        logits_PNK = self._unless_refused(self._at_once, kept, values_PW)
        return self._one_by_one(kept, values_PW) if logits_PNK is None else logits_PNK

    def _unless_refused(self, work: Callable[..., Any], *args: Any) -> Any:
        """Return the result of the work; None, with a note, if the DNN cannot be run for all candidates at once."""
        try:
            return None if self.note else work(*args)
        except (RuntimeError, TypeError, ValueError) as error:
            self.note = (
                f"candidates were run one after the other: {type(self.module).__name__} cannot be run for all at once "
                f"({type(error).__name__}: {str(error).splitlines()[0][:200]})"
            )

    def _record(self, images_NCHW: Tensor) -> Kept:
        with _Run(self._parts) as run:
            self.module(images_NCHW.clone())  # the DNN may change its input in place
        if run.called != self._parts.keys():
            raise ValueError("a searched layer is not called")
        self.bytes_moved = run.largest // len(images_NCHW)
        return images_NCHW, run.calls

    def _at_once(self, kept: Kept, values_PW: Tensor) -> Tensor:
        images_NCHW, calls = kept

        def rest(changes_W: Tensor, shared: dict[int, Any]) -> Any:
            own = tree_map_only(Tensor, Tensor.clone, shared)  # later functions may change them in place
            given = ((func, own.get(n, result)) for n, (func, result) in enumerate(calls))
            with _Run(self._parts, given, changes_W):
                return self.module(images_NCHW.clone())

        # vmap cannot map fused attention. A tensor with a value per candidate cannot be added in place to a shared one,
        # so in-place changes are made functional. vmap loops over operations that it has no rule for, and warns.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            shared = {n: result for n, (_, result) in enumerate(calls) if _nbytes(result)}
            logits_PNK: Tensor = vmap(functionalize(rest), in_dims=(0, None))(
                values_PW - self.before_W, shared
            )
        return logits_PNK

    def _one_by_one(self, kept: Kept, values_PW: Tensor) -> Tensor:
        logits = []
        for values_W in values_PW:
            self.places.fill(self.module, values_W)
            logits.append(self.module(kept[0].clone()))
        self.places.fill(self.module, self.before_W)
        return torch.stack(logits)

    @torch.no_grad()
    def _try(self, image_1CHW: Tensor) -> None:
        """Raise ValueError if the logits of a candidate differ from those of the DNN with the candidate's weights."""
        kept = self._record(image_1CHW)
        self.bytes_kept = _nbytes(kept)
        other_1W = self.before_W + torch.linspace(0.5, 1.5, len(self.before_W)).to(self.before_W)[None]
        logits, right = self._at_once(kept, other_1W), self._one_by_one(kept, other_1W)
        allowed = TOLERANCE.get(right.dtype, 1e-2) * right.abs().max()
        if logits.shape != right.shape or not bool(((logits - right).abs() <= allowed).all()):
            raise ValueError("its logits differ then")


class _Run(TorchFunctionMode):
    """A run of the DNN: as it is deployed (recording), or with changed searched weights (replaying).

    A recording run notes in `calls` the functions up to the first that takes a searched weight, with their results. Of
    the tensors among these it keeps only those that are still referenced then: nothing can use the others later. A
    replaying run takes these calls, and returns their results instead of running the functions.
    """

    def __init__(
        self, parts: dict[int, CandidatePart], calls: Iterable[Any] = (), changes_W: Tensor | None = None
    ) -> None:
        super().__init__()
        self.parts, self.changes_W = parts, changes_W
        self.given: Iterator[Any] = iter(calls)
        self.calls, self.called, self.largest = list[Any](), set[int](), 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call: tuple[Any, Any] = next(self.given, (None, None))
        noted, result = call
        if noted is None:
            result = (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))
        elif func != noted:
            raise ValueError("it calls other functions when it is run again")
        searched = self.parts.keys() & {id(x) for x in args} if isinstance(result, Tensor) else set[int]()
        if searched and func not in PRODUCTS:
            raise ValueError(f"{func.__name__} takes a searched weight")
        if self.changes_W is None:
            self._note(func, result, searched)
            return result
        for weight in searched:
            result = self.parts[weight].changed(func, args, result, self.changes_W)
        return result

    def _note(self, func: Any, result: Any, searched: set[int]) -> None:
        if not self.called:
            self.calls.append((func, tree_map_only(Tensor, weakref.ref, result)))
            if searched:
                self.calls = tree_map_only(weakref.ref, _if_alive, self.calls)
        self.called |= searched
        self.largest = max(self.largest, _nbytes(result) if self.called else 0)


def _if_alive(reference: weakref.ref[Tensor]) -> Tensor:
    tensor = reference()
    return torch.empty(0) if tensor is None else tensor.clone()  # later functions may change it in place


def _nbytes(result: Any) -> int:
    return sum(x.nbytes for x in tree_leaves(result) if isinstance(x, Tensor))


def _batch_norm(x: Tensor, mean_C: Tensor, variance_C: Tensor, **given: Any) -> Tensor:
    """Apply batch norm with stored statistics as one multiply-add; vmap's own rule takes four passes."""
    if given["training"]:
        return F.batch_norm(x, mean_C, variance_C, **given)
    scale_C = torch.rsqrt(variance_C + given["eps"])
    scale_C = scale_C if given["weight"] is None else scale_C * given["weight"]
    shift_C = -mean_C * scale_C if given["bias"] is None else given["bias"] - mean_C * scale_C
    shape = (-1, *[1] * (x.ndim - 2))
    return torch.addcmul(shift_C.view(shape), x, scale_C.view(shape)).to(x.dtype)

"""Find the few weights that are most to blame for the failures (bidirectional localisation).

Source: Sohn, Kang and Yoo 2022 (Arachne, TOSEM), Sec. 3.1 and 3.2. Every weight of the dense and convolution layers
(grouped and depthwise ones, too) has two scores:
forward impact: mean over images of |o_i w_ij| / Σ_i |o_i w_ij|, times the mean over images of |∂(Σ logits)/∂o_j|,
L1-normalised over the layer's outputs. A convolution uses a weight at many places: the products of the two means are
summed over these. o_j is the output of the layer itself, before its activation.
gradient loss: |Σ over images of ∂L/∂w|, where L is the cross entropy.
Each score over the failures is divided by 1 + the same score over the correct images. The Pareto front of the two
scores is kept. As in the published code, the weights of all layers are compared together, so the front may contain
weights of several layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarepair.data.clean_images import CleanImages, LabelledImages
from metarepair.methods.budget import Budget
from metarepair.models.build import DeployedModel
from tasks.errors import DataError, DivergedError
from tasks.keys import keyed_generator
from tasks.records import Ints

# B images in a batch, N images, K classes, W weights

BATCH = 50  # images in a batch with gradients
LOOKED_AT = 250  # images in a batch without gradients
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
Layers = Mapping[str, Layer]
Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]  # images and labels
Scores = dict[str, Tensor]  # by layer: the scores of each weight


class BudgetOverError(Exception):
    """The budget ran out before localisation was done; the method catches this and changes no weight."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """W weights of a DNN, each as the name of its layer and its index in the flattened weight of that layer."""

    layers: tuple[str, ...]
    flat_W: Ints

    def __len__(self) -> int:
        return len(self.layers)

    def of(self, layer: str) -> Ints:
        """Return which of the W weights belong to the layer."""
        return np.flatnonzero([name == layer for name in self.layers])

    def values(self, module: nn.Module) -> Tensor:
        """Return the values [W] of the weights in the module."""
        return torch.stack([weight.detach()[index] for weight, index in self._each(module)])

    @torch.no_grad()
    def fill(self, module: nn.Module, values_W: Tensor) -> None:
        """Set the weights in the module."""
        for (weight, index), value in zip(self._each(module), values_W, strict=True):
            weight[index] = value

    def _each(self, module: nn.Module) -> Iterator[tuple[Tensor, tuple[Any, ...]]]:
        for name, flat in zip(self.layers, self.flat_W, strict=True):
            weight = weight_of(module, name)
            yield weight, np.unravel_index(flat, weight.shape)


def weight_of(module: nn.Module, layer: str) -> Tensor:
    """Return the weight of the layer with this name."""
    return module.get_parameter(f"{layer}.weight")


def layers_of(module: nn.Module) -> dict[str, Layer]:
    """Return the dense and convolution layers by name, one for each weight that may change (requires_grad=True).

    Layers that compute their weight from other tensors (weight norm, standardised weights) are left out.
    """
    found: dict[int, tuple[str, Layer]] = {}
    for name, layer in module.named_modules():
        kind = next((k for k in LAYERS if isinstance(layer, k)), None)
        weight, methods = layer._parameters.get("weight"), ("forward", "_conv_forward")
        if kind is None or weight is None or not weight.requires_grad:
            continue
        if all(getattr(type(layer), m, None) is getattr(kind, m, None) for m in methods):
            found.setdefault(id(weight), (name, layer))
    return dict(found.values())


def correct_rows(
    deployed: DeployedModel, clean: CleanImages, *, count: int, seed: int, budget: Budget
) -> Ints:
    """Return the rows of `count` clean images that the DNN classifies correctly, with the split's share of each class.

    Images are classified in random order until there are enough. If a class has too few correct images, fewer rows are
    returned. Raises DataError if no image is classified correctly, BudgetOverError if the budget runs out.
    """
    labels_N = clean.labels_N
    labels, sizes = np.unique(labels_N, return_counts=True)
    wanted = dict(zip(labels.tolist(), _quotas(sizes, count).tolist(), strict=True))
    found: dict[int, list[int]] = {label: [] for label in wanted}
    queues: dict[int, list[int]] = {}  # rows in random order, taken from the end
    for label in wanted:
        draw = keyed_generator("arachne-correct", seed, label)
        queues[label] = draw.permutation(np.flatnonzero(labels_N == label))[::-1].tolist()
    while rows := [
        queue.pop() for k, queue in queues.items() for _ in range(min(wanted[k] - len(found[k]), len(queue)))
    ]:
        for start in range(0, len(rows), LOOKED_AT):
            batch = np.array(rows[start : start + LOOKED_AT])
            _ask(budget, len(batch))
            predicted_B = deployed.logits(clean.images_NHWC[batch]).argmax(1).numpy()
            for row in batch[predicted_B == labels_N[batch]].tolist():
                found[int(labels_N[row])].append(row)
    if not any(found.values()):
        raise DataError(
            f"arachne compares failures with images that the DNN classifies correctly, and it classifies none of the "
            f"{len(clean)} clean training images correctly. Check that weights, classes and normalisation belong "
            "together."
        )
    return np.array([row for rows in found.values() for row in rows], np.int64)


def _quotas(sizes_K: Ints, count: int) -> Ints:
    """Share `count` places (at most one per image) among classes in proportion to their sizes (largest remainders)."""
    count = min(count, int(sizes_K.sum()))
    shares_K = count * sizes_K / sizes_K.sum()
    places_K: Ints = shares_K.astype(np.int64)
    places_K[np.argsort(places_K - shares_K, kind="stable")[: count - int(places_K.sum())]] += 1
    return places_K


def _ask(budget: Budget, images: int) -> None:
    if budget.over:
        raise BudgetOverError
    budget.spend(images=images)


def blame(
    deployed: DeployedModel, images: LabelledImages, budget: Budget, *, last_layers: int | None = None
) -> Scores:
    """Return forward impact and gradient loss [2, ...] of the weights on the images, by layer.

    `last_layers` counts the layers from the last; None is all of them. Raises BudgetOverError if the budget runs out,
    DivergedError if a score is not finite.
    """

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(images.labels_N), BATCH):
            rows = slice(start, start + BATCH)
            labels_B = torch.from_numpy(np.ascontiguousarray(images.labels_N[rows])).to(deployed.device)
            _ask(budget, len(labels_B))
            yield deployed.normalise(images.images_NHWC[rows]), labels_B

    layers = dict([*layers_of(deployed.module).items()][-(last_layers or 0) :])
    sensitivity, gradient = _gradients(deployed.module, layers, batches, len(images.labels_N))
    impact = _impacts(deployed.module, layers, batches, len(images.labels_N), sensitivity)
    scores = {name: torch.stack([impact[name], gradient[name].abs()]) for name in layers}
    for name, score in scores.items():
        if not bool(torch.isfinite(score).all()):
            raise DivergedError(
                f"the gradient of the DNN by {name}.weight, or the input of that layer, is not finite for all "
                "images, so arachne cannot find the weights to blame. Give a DNN with finite weights."
            )
    return scores


def against(failures: Scores, correct: Scores) -> Scores:
    """Return the scores of the failures, divided by 1 + those of the correct images."""
    return {name: score / (1 + correct[name]) for name, score in failures.items()}


def _gradients(module: nn.Module, layers: Layers, batches: Batches, number: int) -> tuple[Scores, Scores]:
    """Return, by layer, the mean normalised |∂(Σ logits)/∂output| in the shape of the output, and Σ ∂L/∂w."""
    sensitivity: Scores = {}
    sums = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}
    outputs: list[tuple[str, Tensor]] = []  # in the order of the calls

    def note(name: str, _: Layer, __: Tensor, out: Tensor) -> Tensor:
        outputs.append((name, out))
        return out.clone()  # later layers may change it in place

    for x_BCHW, labels_B in batches():
        outputs.clear()
        with _watching(layers, note), torch.enable_grad():
            logits_BK = module(x_BCHW)
            loss = F.cross_entropy(logits_BK, labels_B, reduction="sum")
        tensors = [tensor for _, tensor in outputs]
        slopes = torch.autograd.grad(logits_BK.sum(), tensors, retain_graph=True, allow_unused=True)
        for (name, tensor), slope in zip(outputs, slopes, strict=True):
            size = torch.zeros_like(tensor) if slope is None else slope.abs()
            mean = F.normalize(size.flatten(1), p=1).sum(0).view(tensor.shape[1:]) / number
            sensitivity[name] = sensitivity[name] + mean if name in sensitivity else mean
        weights = [layer.weight for layer in layers.values()]
        for name, slope in zip(layers, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            sums[name] += 0 if slope is None else slope
    return sensitivity, sums


@torch.no_grad()
def _impacts(module: nn.Module, layers: Layers, batches: Batches, number: int, sensitivity: Scores) -> Scores:
    """Return the forward impact by layer.

    Σ over places of sensitivity × |x| / (|x| convolved with |w|) is the weight gradient of the layer's backward pass if
    its input is |x| and the gradient of its output is sensitivity / (|x| convolved with |w|). So the input need not be
    unfolded.
    """
    sums = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}

    def add(name: str, layer: Layer, x: Tensor, _: Tensor) -> None:
        with torch.enable_grad():
            size = layer.weight.detach().abs().requires_grad_()
            product = F.linear if isinstance(layer, nn.Linear) else partial(layer._conv_forward, bias=None)
            total = product(x.detach().abs(), weight=size)
            share = torch.where(total > 0, sensitivity[name] / total.detach(), 0)
            (slope,) = torch.autograd.grad(total, size, share)
        sums[name] += size.detach() * slope / number

    with _watching(layers, add):
        for x_BCHW, _ in batches():
            module(x_BCHW)
    return sums


@contextmanager
def _watching(layers: Layers, seen: Callable[..., Tensor | None]) -> Iterator[None]:
    """Call `seen(name, layer, input, output)` at each call of a layer; its result, if any, replaces the output."""

    def hook(name: str, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Any:
        return seen(name, layer, args[0] if args else kwargs["input"], out)

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(partial(hook, name), with_kwargs=True).remove)
        yield


def pareto_front(scores: Scores) -> Places:
    """Return the weights on the Pareto front of the two scores, by falling forward impact.

    A weight is on the front if no other weight is better in one score and at least as good in the other. Of weights
    that are equal in both, the first is kept.
    """
    both = torch.cat([score.detach().flatten(1) for score in scores.values()], 1).double().cpu().numpy()
    rows = front_rows(*both)
    ends = np.cumsum([score[0].numel() for score in scores.values()])
    which = np.searchsorted(ends, rows, side="right")
    names, starts = list(scores), np.concatenate([[0], ends[:-1]])
    return Places(layers=tuple(names[i] for i in which), flat_W=rows - starts[which])


def front_rows(first_W: Any, second_W: Any) -> Ints:
    """Return the rows on the Pareto front of two scores (larger is better), by falling first score."""
    order = np.lexsort((np.arange(len(first_W)), -second_W, -first_W))
    best_before = np.maximum.accumulate(np.concatenate([[-np.inf], second_W[order][:-1]]))
    rows: Ints = order[second_W[order] > best_before]
    return rows

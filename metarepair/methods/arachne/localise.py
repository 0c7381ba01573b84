"""A DNN, images that it fails and images that it does not in, the few weights that are most to blame out.

Source: Sohn, Kang and Yoo 2022 (Arachne, TOSEM), Sec. 3.1 and 3.2: bidirectional localisation. For each weight of all
dense and convolution layers (grouped and depthwise ones, too):
forward impact: mean over images of |o_i w_ij| / Σ_i |o_i w_ij|, times the mean over images of |∂(Σ logits)/∂o_j|,
L1-normalised over the layer's outputs. A convolution has a weight at many places: the products of the two means are
summed over these. o_j is what the layer itself gives, before its activation.
gradient loss: |Σ over images of ∂L/∂w|, L the cross entropy.
Either of the failures, divided by 1 + that of the correct images; what no other weight is better than in both is kept.
All layers are compared as one, as the published code does, so the front may lie over several; the search then moves all
of its weights at once, each within the bounds of its own layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarepair.clean_images import CleanImages, LabelledImages
from metarepair.methods.arachne.trace import Layer, Places, layers_of
from metarepair.methods.budget import Budget
from metarepair.models.build import DeployedModel
from tasks.errors import DataError, DivergedError
from tasks.keys import keyed_generator
from tasks.records import Ints

# B images of a batch, N images, K classes, W weights

BATCH = 50  # with gradients
LOOKED_AT = 250  # without
Scores = dict[str, Tensor]  # by layer, in the shape of its weight


@dataclass(frozen=True, kw_only=True)
class Blame:
    """What speaks against each weight, by layer: forward impact and gradient loss."""

    impact: Scores
    gradient: Scores

    def over(self, correct: Blame) -> Blame:
        """Of the failures, set against that of the correct images."""
        return Blame(
            impact={k: v / (1 + correct.impact[k]) for k, v in self.impact.items()},
            gradient={k: v / (1 + correct.gradient[k]) for k, v in self.gradient.items()},
        )


class BudgetOverError(Exception):
    """The budget was over before a piece of work; its caller says what there is instead."""


def correct_rows(
    deployed: DeployedModel, clean: CleanImages, *, count: int, seed: int, budget: Budget
) -> Ints:
    """Rows of `count` clean images that the DNN classifies rightly, in the shares that the classes have in the split.

    Images are looked at in an order of chance, as many as it takes. A class that has too few leaves its places empty.
    Raises DataError where none is right, BudgetOverError.
    """
    labels_N = clean.labels_N
    queues = {
        label: keyed_generator("arachne-correct", seed, label).permutation(np.flatnonzero(labels_N == label))
        for label in np.unique(labels_N).tolist()
    }
    wanted = _quotas({label: len(rows) for label, rows in queues.items()}, count)
    found: dict[int, list[int]] = {label: [] for label in queues}
    looked = dict.fromkeys(queues, 0)
    while rows := [
        row
        for label, queue in queues.items()
        for row in queue[looked[label] : looked[label] + wanted[label] - len(found[label])].tolist()
    ]:
        for start in range(0, len(rows), LOOKED_AT):
            batch = np.array(rows[start : start + LOOKED_AT])
            _ask(budget, len(batch))
            predicted_B = deployed.logits(clean.images_NHWC_u8[batch]).argmax(1).numpy()
            for row, predicted in zip(batch.tolist(), predicted_B.tolist(), strict=True):
                label = int(labels_N[row])
                looked[label] += 1
                if predicted == label:
                    found[label].append(row)
    rows = [row for label in found for row in found[label]]
    if not rows:
        raise DataError(
            f"arachne compares failures with images that the DNN classifies rightly, and of {len(clean)} clean "
            "training images it classifies none so. Check that weights, classes and normalisation belong together."
        )
    return np.array(rows, np.int64)


def _quotas(sizes: Mapping[int, int], count: int) -> dict[int, int]:
    """`count` places, or as many as there are, by the sizes of the classes (largest remainders)."""
    count = min(count, sum(sizes.values()))
    shares = np.array([count * size / sum(sizes.values()) for size in sizes.values()])
    places = shares.astype(np.int64)
    places[np.argsort(places - shares, kind="stable")[: count - int(places.sum())]] += 1
    return dict(zip(sizes, places.tolist(), strict=True))


def _ask(budget: Budget, images: int) -> None:
    if budget.over:
        raise BudgetOverError
    budget.spend(images=images)


def blame(
    deployed: DeployedModel, images: LabelledImages, budget: Budget, *, last_layers: int | None = None
) -> Blame:
    """Forward impact and gradient loss of the images, of the last layers or all.

    Raises BudgetOverError; DivergedError for what is not finite.
    """
    layers = dict([*layers_of(deployed.module).items()][-(last_layers or 0) :])
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    sensitivity, gradient = _gradients(deployed, layers, images, budget)
    impact = _impacts(deployed, layers, images, sensitivity, budget)
    for scores in (impact, gradient):
        for name, score in scores.items():
            if not bool(torch.isfinite(score).all()):
                raise DivergedError(
                    f"the gradient of the DNN at {name}.weight, or what goes in there, is not finite for all "
                    "images, so arachne cannot say which weights are to blame. Give weights that are finite."
                )
    return Blame(impact=impact, gradient=gradient)


def _gradients(
    deployed: DeployedModel, layers: Mapping[str, Layer], images: LabelledImages, budget: Budget
) -> tuple[Scores, Scores]:
    """Mean of the normalised |∂(Σ logits)/∂output| by layer, in the shape of its output; and |Σ ∂L/∂w|."""
    sensitivity: Scores = {}
    sums: Scores = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}
    for x_BCHW, labels_B in _batches(deployed, images, budget):
        with _outputs(layers) as outputs, torch.enable_grad():
            logits_BK = deployed.module(x_BCHW)
            loss = F.cross_entropy(logits_BK, labels_B, reduction="sum")
        names = [name for name, _ in outputs]
        tensors = [tensor for _, tensor in outputs]
        slopes = torch.autograd.grad(logits_BK.sum(), tensors, retain_graph=True, allow_unused=True)
        for name, slope, tensor in zip(names, slopes, tensors, strict=True):
            size = torch.zeros_like(tensor) if slope is None else slope.abs()
            mean = F.normalize(size.flatten(1), p=1).sum(0).view(tensor.shape[1:]) / len(images.labels_N)
            sensitivity[name] = sensitivity[name] + mean if name in sensitivity else mean
        weights = [layer.weight for layer in layers.values()]
        for name, found in zip(layers, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            sums[name] += 0 if found is None else found
    return sensitivity, {name: total.abs() for name, total in sums.items()}


@torch.no_grad()
def _impacts(
    deployed: DeployedModel,
    layers: Mapping[str, Layer],
    images: LabelledImages,
    sensitivity: Scores,
    budget: Budget,
) -> Scores:
    """Forward impact by layer.

    Σ over places of sensitivity × |x| / (|x| convolved with |w|) is what a layer's backward pass gives for its weight
    when its input is |x| and the gradient of its output is sensitivity / (…): no input is unfolded.
    """
    sums: Scores = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}

    def add(name: str, layer: Layer, layer_input: Tensor) -> None:
        with torch.enable_grad():
            size = layer.weight.detach().abs().requires_grad_()
            total = _without_bias(layer, layer_input.detach().abs(), size)
            share = torch.where(total > 0, sensitivity[name] / total.detach(), 0)
            (found,) = torch.autograd.grad(total, size, share)
        sums[name] += size.detach() * found / len(images.labels_N)

    with _inputs(layers, add):
        for x_BCHW, _ in _batches(deployed, images, budget):
            deployed.module(x_BCHW)
    return sums


def _without_bias(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    found: Tensor = layer._conv_forward(x, weight, None)
    return found


def _batches(
    deployed: DeployedModel, images: LabelledImages, budget: Budget
) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(images.labels_N), BATCH):
        rows = slice(start, start + BATCH)
        labels_B = torch.from_numpy(np.ascontiguousarray(images.labels_N[rows])).to(deployed.device)
        _ask(budget, len(labels_B))
        yield deployed.normalise(images.images_NHWC_u8[rows]), labels_B


@contextmanager
def _outputs(layers: Mapping[str, Layer]) -> Iterator[list[tuple[str, Tensor]]]:
    """What the layers give, by the order of their calls, as it is before anything changes it in place."""
    found: list[tuple[str, Tensor]] = []

    def note(name: str, _: nn.Module, __: Any, out: Tensor) -> Tensor:
        copy = out.clone()
        found.append((name, out))
        return copy

    handles = [layer.register_forward_hook(partial(note, name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _inputs(layers: Mapping[str, Layer], seen: Any) -> Iterator[None]:
    """Calls `seen(name, layer, input)` at each call of a layer."""

    def note(name: str, layer: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        seen(name, layer, args[0] if args else kwargs["input"])

    handles = [
        layer.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def pareto_front(scores: Blame) -> Places:
    """The weights that no other weight is better than in one of the two and at least as good in the other.

    Of weights that are equal in both, the first is kept. They come by falling forward impact.
    """
    names = list(scores.impact)
    ends = np.cumsum([scores.impact[name].numel() for name in names])
    impact_W, gradient_W = (
        torch.cat([part[name].detach().flatten() for name in names]).double().cpu().numpy()
        for part in (scores.impact, scores.gradient)
    )
    rows = front_rows(impact_W, gradient_W)
    which = np.searchsorted(ends, rows, side="right")
    starts = np.concatenate([[0], ends[:-1]])
    return Places(layers=tuple(names[i] for i in which), flat_W=rows - starts[which])


def front_rows(first_W: Any, second_W: Any) -> Ints:
    """Rows of the Pareto front of two scores that should be large, by falling first score."""
    order = np.lexsort((np.arange(len(first_W)), -second_W, -first_W))
    best_before = np.maximum.accumulate(np.concatenate([[-np.inf], second_W[order][:-1]]))
    rows: Ints = order[second_W[order] > best_before]
    return rows

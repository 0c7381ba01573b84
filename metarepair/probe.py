"""Probe a DNN before hours of work: is it the pure, twice-differentiable function that the engine takes it for?

A few images and at most two inner steps, with the DNN's own weights and the run's own rule. The engine's gradient is
held against plain autograd; where second derivatives are needed, the meta-gradient is held against a finite difference
of the outer loss, on a float64 copy where the DNN runs in float64.
Source: paper Algorithm 1, lines 6-10, is what is differentiated; central differences are the reference.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from metarepair.finite_difference import compare_with_difference
from metarepair.inner import Batch, FunctionalNet, InnerRule, mask_seed
from metarepair.memory import Memory
from metarepair.meta_gradient import Order, TaskBatch, task_gradient
from metarepair.models.build import DeployedModel
from metarepair.parts import check_trainable
from metarepair.stateless import seeded
from metarepair.vectors import State, not_finite
from tasks.errors import ConfigError
from tasks.records import Pixels

# B images, C H W pixels, K classes

STEPS = 2  # inner steps at most: the second one is where a wrong Hessian first shows
IMAGES = 2
IMAGES_OF_A_BATCH = 8  # where batch norm normalises by the batch: two values would all become -1 and 1
# How far the engine's gradient may be from plain autograd's: the rounding of other kernels.
AGREES = {torch.float64: 1e-5, torch.float32: 1e-2}
LEAST = 1e-5  # smaller differences are shown as this


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What was compared, in which precision.

    first: relative difference of the engine's gradient to plain autograd's. second: how far the meta-gradient is from a
    finite difference, as a share of what second order adds to it; None where that was not asked for.
    """

    name: str
    dtype: torch.dtype
    first: float
    second: float | None

    @property
    def words(self) -> str:
        """For a line of a log."""
        told = f"{self.name}: gradient within {max(self.first, LEAST):.3%} of plain autograd"
        if self.second is not None:
            told += f", meta-gradient within {max(self.second, LEAST):.3%} of a finite difference"
        return f"{told} ({str(self.dtype).removeprefix('torch.')})"


@torch.enable_grad()
def probe(
    deployed: DeployedModel,
    images_BHWC: Pixels,
    rule: InnerRule,
    *,
    order: Order,
    memory: Memory | int = "graph",
    bf16: bool = False,
) -> Probed:
    """Checks that the engine's gradients of this DNN are right. Raises ConfigError, with the remedy, where not.

    images_BHWC: one image or more, as `deployed.normalise` takes them. order: `second` probes the second derivative as
    well, in the given memory mode. The DNN is left as it was.
    """
    check_trainable(deployed.module, rule.parts)
    rule = replace(rule, steps=min(rule.steps, STEPS))
    own_batch = rule.batch_norm != "frozen" and any(
        isinstance(m, _BatchNorm) for m in deployed.module.modules()
    )
    task = _task(deployed, images_BHWC, IMAGES_OF_A_BATCH if own_batch else IMAGES)
    _check_pure(FunctionalNet(deployed.module, replace(rule, steps=1), bf16=bf16), task, order, deployed.name)
    net, task = _doubled(FunctionalNet(copy.deepcopy(deployed.module), rule), task)
    start = _beside(net)
    _check_reached(net, start, task.support, deployed.name)
    first = _first_difference(net, start, task.support, deployed.name)
    second = _second_difference(net, start, task, memory, deployed.name) if order == "second" else None
    return Probed(name=deployed.name, dtype=task.support.images_BCHW.dtype, first=first, second=second)


def _task(deployed: DeployedModel, images_BHWC: Pixels, count: int) -> TaskBatch:
    """So many images to adapt to, and the same mirrored, with other labels, to judge by. A little noise tells images
    apart that are used more than once.
    """
    rows = np.arange(count) % len(images_BHWC)
    x_BCHW = deployed.normalise(images_BHWC[rows])
    noise = torch.randn(x_BCHW.shape, generator=torch.Generator().manual_seed(3)).to(x_BCHW)
    x_BCHW = x_BCHW + 0.1 * noise
    labels_B = torch.arange(count, device=deployed.device) % deployed.num_classes
    return TaskBatch(
        support=Batch(images_BCHW=x_BCHW, labels_B=labels_B),
        query=Batch(images_BCHW=x_BCHW.flip(3), labels_B=labels_B.flip(0)),
    )


def _check_pure(net: FunctionalNet, task: TaskBatch, order: Order, name: str) -> None:
    """The same call twice gives the same finite gradient, and leaves the module's tensors alone."""
    module = net.module
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    before = {k: v.detach().clone() for k, v in tensors.items()}
    factors = net.rate_factors() if net.rule.learned_rates else None
    try:
        found = [
            task_gradient(net, net.parameters(), net.buffers(), task, order=order, factors=factors).gradient
            for _ in range(2)
        ]
        changed = [k for k, v in tensors.items() if not torch.equal(v, before[k])]
    finally:
        with torch.no_grad():
            for key, value in tensors.items():
                value.copy_(before[key])
    if changed:
        raise ConfigError(
            f"{name} changes its own {changed[0]} when it is called in evaluation mode ({len(changed)} such tensors), "
            "and a repair needs a DNN that only reads its weights. Take that out of its forward pass."
        )
    bad = not_finite(found[0])
    if bad:
        raise ConfigError(
            f"The {'meta-gradient' if order == 'second' else 'gradient'} of {name} by {bad[0]} is not finite on "
            f"{len(task.support)} images ({len(bad)} such tensors). " + _remedy(order)
        )
    apart = _relative(list(found[0].values()), list(found[1].values()))
    if apart > AGREES[torch.float32]:
        raise ConfigError(
            f"{name} gives different gradients for the same weights, images and torch seed (by {apart:.1%}): its "
            "forward pass depends on something else. Make it a function of its weights and images alone; what it "
            "draws, it should draw from torch's generator."
        )


def _remedy(order: Order) -> str:
    if order == "second":
        return "Set train.order: first, which needs no second derivative, or replace the layer that this comes from."
    return "Replace the layer that this comes from, or use a method without gradients (bn_adapt)."


class _Rounding(TorchFunctionMode):
    """Notices whether float64 is made a narrower type."""

    def __init__(self) -> None:
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.is_floating_point() and made.dtype != torch.float64:
            self.found |= any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args)
        return made


def _doubled(net: FunctionalNet, task: TaskBatch) -> tuple[FunctionalNet, TaskBatch]:
    """Net and task in float64; in float32 where the DNN does not run in float64, or not all of it."""
    for dtype in (torch.float64, torch.float32):
        module = copy.deepcopy(net.module).to(dtype)
        moved = FunctionalNet(module, net.rule)
        parts = [replace(p, images_BCHW=p.images_BCHW.to(dtype)) for p in (task.support, task.query)]
        try:
            with _Rounding() as rounding, moved.query(moved.parameters(), moved.buffers(), parts[0]):
                if dtype == torch.float32 or not rounding.found:
                    return moved, TaskBatch(support=parts[0], query=parts[1])
        except Exception:  # layers that insist on a precision raise what they like
            if dtype == torch.float32:
                raise
    raise AssertionError("unreachable")


def _beside(net: FunctionalNet) -> State:
    """The parameters a thousandth away from the DNN's own: off the kinks that values such as 0 lie on."""
    generator = torch.Generator().manual_seed(0)

    def moved(key: str, value: Tensor) -> Tensor:
        if key not in net.trainable:
            return value
        noise = torch.randn(value.shape, generator=generator).to(value)
        return value + 1e-3 * max(float(value.square().mean().sqrt()), 1e-3) * noise

    return {k: moved(k, v) for k, v in net.parameters().items()}


def _plain_loss(net: FunctionalNet, start: State, batch: Batch) -> tuple[Tensor, dict[str, nn.Parameter]]:
    """The loss of a copy of the module that is simply called, and the copy's trainable parameters."""
    module = copy.deepcopy(net.module).eval()
    own_batch = net.rule.batch_norm != "frozen"
    for part in module.modules():
        norm = isinstance(part, _BatchNorm)
        part.training = own_batch if norm else net.rule.dropout
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for key, value in start.items():
            parameters[key].copy_(value)
    with seeded(batch.images_BCHW.device, mask_seed(batch, 0)):
        loss = F.cross_entropy(module(batch.images_BCHW), batch.labels_B)
    return loss, {k: parameters[k] for k in net.trainable}


def _check_reached(net: FunctionalNet, start: State, batch: Batch, name: str) -> None:
    """Every trainable parameter that the logits depend on has a gradient."""
    loss, parameters = _plain_loss(net, start, batch)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch's, of re-entrant checkpoints: what they leave out is found here
        found = (
            torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            if loss.requires_grad
            else ()
        )
    lost = [k for k, g in zip(parameters, found, strict=True) if g is None] if found else list(parameters)

    def matters(names: Sequence[str]) -> bool:
        generator = torch.Generator().manual_seed(1)
        moved = {
            k: v + (0.1 * v.abs().mean() + 0.01) * torch.randn(v.shape, generator=generator).to(v)
            for k, v in ((name, start[name]) for name in names)
        }
        with torch.no_grad():
            other, _ = _plain_loss(net, start | moved, batch)
        return abs(float(other) - float(loss.detach())) > 1e-6 * (1 + abs(float(other)))

    if not lost or not matters(lost):
        return
    guilty = [k for k in lost[:20] if matters([k])] or lost
    raise ConfigError(
        f"The logits of {name} depend on {guilty[0]}, and autograd finds no gradient for it ({len(lost)} such tensors "
        f"of {len(parameters)}), as when a part of the forward pass runs under torch.no_grad() or is detached. Let it "
        "run without these; or set requires_grad=False on what is meant to stay as it is."
    )


def _first_difference(net: FunctionalNet, start: State, batch: Batch, name: str) -> float:
    """The engine's gradient against that of the module itself."""
    loss, parameters = _plain_loss(net, start, batch)
    plain = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    leaves = {k: v.detach().requires_grad_(k in net.trainable) for k, v in start.items()}
    with net.support(leaves, net.buffers(), batch) as found:
        ours = torch.autograd.grad(
            found.loss, [leaves[k] for k in net.trainable], allow_unused=True, materialize_grads=True
        )
    apart = _relative(ours, plain)
    if not apart <= AGREES[loss.dtype]:
        raise ConfigError(
            f"The gradient of {name} with its weights put in from outside differs from that of the DNN itself by "
            f"{apart:.1%}, so its weights or modes are not all in its parameters, buffers and attributes. Keep them "
            "there, or use a method without gradients (bn_adapt)."
        )
    return apart


def _second_difference(
    net: FunctionalNet, start: State, task: TaskBatch, memory: Memory | int, name: str
) -> float:
    """The meta-gradient against a finite difference of the outer loss."""
    found = compare_with_difference(net, start, task, memory)
    if not found.agrees:
        dtype = str(task.support.images_BCHW.dtype).removeprefix("torch.")
        raise ConfigError(
            f"The meta-gradient of {name} differs from a finite difference of its loss by {found.off:.0%} "
            f"({len(task.support)} images, {net.rule.steps} inner steps, {dtype}; in float64 of what second order adds "
            "to it), while its first derivative is that of plain autograd. " + _remedy("second")
        )
    return found.off


def _relative(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """‖ours − theirs‖ / ‖theirs‖; 0 where both are 0."""
    away = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(ours, theirs, strict=True)))
    size = math.sqrt(sum(float(b.square().sum()) for b in theirs))
    return away / size if size else away

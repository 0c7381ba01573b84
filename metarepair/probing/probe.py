"""Checks that a DNN is the pure, twice-differentiable function that the engine assumes.

The probe takes a few images and at most two inner steps, with the DNN's own weights and the run's own rule. It
compares the engine's gradient with plain autograd. Where second derivatives are needed, it also compares the
meta-gradient with a finite difference of the outer loss, on a float64 copy if the DNN runs in float64.
Source: paper Algorithm 1, lines 6-10, which the meta-gradient differentiates; the reference is a central difference.
"""

from __future__ import annotations

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

from metarepair.engine.adapted import check_trainable
from metarepair.engine.checks import no_path
from metarepair.engine.finite_difference import compare_first, compare_second, norm
from metarepair.engine.inner import FunctionalNet, Point, gradients_of, mask_seed
from metarepair.engine.memory import Memory
from metarepair.engine.meta_gradient import Order, task_gradient
from metarepair.engine.stateless import seeded
from metarepair.engine.types import Batch, InnerRule, TaskBatch
from metarepair.engine.vectors import State, not_finite
from metarepair.models.build import DeployedModel
from metarepair.models.wrappers import copied
from tasks.errors import ConfigError, UserError
from tasks.records import Pixels

# B images, C H W pixels, K classes

STEPS = 2  # the most inner steps; a wrong Hessian first shows in the second one
IMAGES = 2
IMAGES_OF_A_BATCH = (
    8  # with two, batch norm would give only -1 and 1 where a channel has one value for each image
)
# Largest allowed relative difference between the engine's gradient and plain autograd's; kernels round differently.
AGREES = {torch.float64: 1e-5, torch.float32: 1e-2, torch.float16: 0.1, torch.bfloat16: 0.1}
LEAST = 1e-5  # smaller differences are shown as this value
FIRST_HELPS = (
    "Set train.order: first, which needs no second derivative, or replace the layer that causes this."
)
NOTHING_HELPS = "Replace the layer that causes this, or use a method without gradients (bn_adapt)."


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The differences that a probe measured, and the precision `dtype` that it ran in.

    first: relative difference between the engine's gradient and plain autograd's. second: difference between the
    meta-gradient and a finite difference, as a share of what second order adds to it; None if it was not needed.
    """

    name: str
    dtype: torch.dtype
    first: float
    second: float | None

    @property
    def words(self) -> str:
        """One line for a log."""
        line = f"{self.name}: gradient within {max(self.first, LEAST):.3%} of plain autograd"
        if self.second is not None:
            line += f", meta-gradient within {max(self.second, LEAST):.3%} of a finite difference"
        return f"{line} ({str(self.dtype).removeprefix('torch.')})"


@torch.enable_grad()
def probe(
    deployed: DeployedModel,
    images_BHWC: Pixels,
    rule: InnerRule,
    *,
    order: Order,
    memory: Memory | int = "graph",
    bf16: bool = False,
) -> ProbeResult:
    """Check that the engine's gradients of this DNN are right. Raises ConfigError, with the remedy, if they are not.

    images_BHWC: one image or more, as `deployed.normalise` takes them. order: `second` probes the second derivative as
    well, in the given memory mode. The DNN is not changed.
    """
    check_trainable(deployed.module, rule.parts)
    rule = replace(rule, steps=min(rule.steps, STEPS))
    own_batch = rule.batch_norm != "frozen" and any(
        isinstance(m, _BatchNorm) for m in deployed.module.modules()
    )
    task = _task(deployed, images_BHWC, IMAGES_OF_A_BATCH if own_batch else IMAGES)
    name = deployed.name
    try:
        _check_pure(FunctionalNet(deployed.module, replace(rule, steps=1), bf16=bf16), task, order, name)
        net, task = _doubled(FunctionalNet(copied(deployed.module), rule), task)
        start = _beside(net)
        first = _check_first(net, start, task.support, name)
        second = _check_second(net, start, task, memory, name) if order == "second" and rule.steps else None
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a user's forward pass may raise any class of error
        message = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{name} raised {type(error).__name__} on a batch of {len(task.support)} images ({message}). A repair "
            "calls it with batches of any size; make its forward pass accept them."
        ) from error
    return ProbeResult(name=name, dtype=task.support.images_BCHW.dtype, first=first, second=second)


def _task(deployed: DeployedModel, images_BHWC: Pixels, count: int) -> TaskBatch:
    """A task with `count` images as support, and the same images mirrored, with other labels, as query.

    A little noise makes images differ that are used more than once.
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
    """Check that a call, made twice, gives the same finite gradient and changes none of the module's tensors."""
    module = net.module
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    before = {k: v.detach().clone() for k, v in tensors.items()}

    def gradient(order: Order) -> State:
        return task_gradient(
            net, net.parameters(), net.buffers(), task, order=order, factors=net.rate_factors()
        ).gradient

    try:
        gradients = [gradient(order) for _ in range(2)]
        changed = [k for k, v in tensors.items() if not _same(v, before[k])]
    finally:
        with torch.no_grad():
            for key, value in tensors.items():
                value.copy_(before[key])
    if changed:
        raise ConfigError(
            f"{name} changes its own {changed[0]} when it is called in evaluation mode ({len(changed)} such tensors), "
            "but a repair needs a DNN that only reads its weights. Remove that from its forward pass."
        )
    bad = not_finite(gradients[0])
    if bad:
        helps = order == "second" and not not_finite(gradient("first"))
        raise ConfigError(
            f"The {'meta-gradient' if order == 'second' else 'gradient'} of {name} by {bad[0]} is not finite on "
            f"{len(task.support)} images ({len(bad)} such tensors). "
            + (FIRST_HELPS if helps else NOTHING_HELPS)
        )
    _check_repeated(list(gradients[0].values()), list(gradients[1].values()), name)


def _check_repeated(once: Sequence[Tensor], again: Sequence[Tensor], name: str) -> None:
    apart = _relative(once, again)
    if apart > AGREES[torch.float32]:
        raise ConfigError(
            f"{name} gives different gradients for the same weights, images and torch seed (relative difference "
            f"{apart:.2g}), so its forward pass depends on something else. Make it depend on its weights and images "
            "only, and take random numbers from torch's generator."
        )


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether all entries are equal; NaN equals NaN."""
    return bool(((one == other) | ((one != one) & (other != other))).all())


class _Rounding(TorchFunctionMode):
    """Detects whether a float64 tensor is converted to a narrower type."""

    def __init__(self) -> None:
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and output.is_floating_point() and output.dtype != torch.float64:
            self.found |= any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args)
        return output


def _doubled(net: FunctionalNet, task: TaskBatch) -> tuple[FunctionalNet, TaskBatch]:
    """Net and task in float64; in float32 if some part of the DNN does not run in float64; else in its own types."""
    for dtype in (torch.float64, torch.float32):
        moved = FunctionalNet(copied(net.module).to(dtype), net.rule)
        support, query = (replace(p, images_BCHW=p.images_BCHW.to(dtype)) for p in (task.support, task.query))
        try:
            with _Rounding() as rounding, moved.query(moved.parameters(), moved.buffers(), support):
                if dtype == torch.float32 or not rounding.found:
                    return moved, TaskBatch(support=support, query=query)
        except Exception:  # a layer that needs a certain precision may raise any class of error
            continue
    return net, task


def _beside(net: FunctionalNet) -> State:
    """The DNN's parameters, shifted slightly: gradients are undefined at kinks such as ReLU's 0.

    The shift is random, 0.1% of each tensor's root mean square (of 0.001 if that is larger).
    """
    generator = torch.Generator().manual_seed(0)

    def moved(key: str, value: Tensor) -> Tensor:
        if key not in net.trainable:
            return value
        noise = torch.randn(value.shape, generator=generator).to(value)
        return value + 1e-3 * max(float(value.square().mean().sqrt()), 1e-3) * noise

    return {k: moved(k, v) for k, v in net.parameters().items()}


def _plain_loss(net: FunctionalNet, start: State, batch: Batch) -> tuple[Tensor, dict[str, nn.Parameter]]:
    """The loss of a copy of the module, called without the engine, and the copy's trainable parameters."""
    module = copied(net.module).eval()
    own_batch = net.rule.batch_norm != "frozen"
    for part in module.modules():
        norm = isinstance(part, _BatchNorm)
        part.training = own_batch if norm else net.rule.dropout
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for key, value in start.items():
            parameters[key].copy_(value)
    with seeded(batch.images_BCHW.device, mask_seed(batch, 0)):
        loss = F.cross_entropy(module(batch.images_BCHW.clone()), batch.labels_B)
    return loss, {k: parameters[k] for k in net.trainable}


def _check_first(net: FunctionalNet, start: State, batch: Batch, name: str) -> float:
    """Compare the engine's gradient with that of the module itself, and check that no parameter lacks a gradient."""
    plain = _plain_gradient(net, start, batch, name)
    _check_repeated(plain, _plain_gradient(net, start, batch, name), name)
    ours = list(_support_gradient(net, start, batch).values())
    apart = _relative(ours, plain)
    if not apart <= AGREES[batch.images_BCHW.dtype]:
        raise ConfigError(
            f"The gradient of {name} with weights passed in from outside differs from that of the DNN itself "
            f"(relative difference {apart:.2g}). Keep everything that its forward pass reads in its parameters, "
            "buffers and attributes, or use a method without gradients (bn_adapt)."
        )
    return apart


def _support_gradient(net: FunctionalNet, start: State, batch: Batch) -> State:
    """The engine's gradient of the loss of a support batch."""
    leaves = Point(parameters=start).leaves(net.trainable)
    with net.support(leaves, net.buffers(), batch, moves=False) as forward:
        gradients = gradients_of(net, forward.loss, [leaves[k] for k in net.trainable])
    return dict(zip(net.trainable, gradients, strict=True))


def _plain_gradient(net: FunctionalNet, start: State, batch: Batch, name: str) -> list[Tensor]:
    """Plain autograd's gradient of a copy of the module.

    Raises ConfigError if the loss depends on a parameter that has no gradient.
    """
    loss, parameters = _plain_loss(net, start, batch)
    if not loss.requires_grad:
        raise no_path(net.module, len(parameters))
    with warnings.catch_warnings():
        # PyTorch warns of re-entrant checkpoints; the gradients that they lose are detected below.
        warnings.simplefilter("ignore")
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    lost = [k for k, g in zip(parameters, gradients, strict=True) if g is None]
    matter = _that_matter(net, start, batch, lost, float(loss.detach()))
    if matter:
        raise ConfigError(
            f"The logits of {name} depend on {matter[0]}, but autograd finds no gradient for it ({len(matter)} such "
            f"tensors of {len(parameters)}). There is no gradient through torch.no_grad() or detach(): remove these "
            "from the forward pass, or set requires_grad=False on the tensors that should not change."
        )
    return [
        torch.zeros_like(parameters[k]) if g is None else g
        for k, g in zip(parameters, gradients, strict=True)
    ]


def _that_matter(
    net: FunctionalNet, start: State, batch: Batch, names: Sequence[str], loss: float
) -> list[str]:
    """The parameters in `names` that each change the loss; a first test changes all of them at once."""

    def matters(some: Sequence[str]) -> bool:
        generator = torch.Generator().manual_seed(1)
        moved = {
            k: v + (0.1 * v.abs().mean() + 0.01) * torch.randn(v.shape, generator=generator).to(v)
            for k, v in ((key, start[key]) for key in some)
        }
        with torch.no_grad():
            other, _ = _plain_loss(net, start | moved, batch)
        return abs(float(other) - loss) > 1e-6 * (1 + abs(loss))

    return [k for k in names if matters([k])] if names and matters(names) else []


def _check_second(
    net: FunctionalNet, start: State, task: TaskBatch, memory: Memory | int, name: str
) -> float:
    """Compare the meta-gradient with a finite difference of the outer loss."""
    second = compare_second(net, start, task, memory)
    if second.agrees:
        return second.off
    first = compare_first(net, start, task.support, _support_gradient(net, start, task.support))
    cause = "while its first derivative is right. " + FIRST_HELPS
    if not first.agrees:
        cause = (
            f"and the gradient that PyTorch gives is not the derivative of the loss either (off by {first.off:.0%}). "
            "Set train.order: first, which uses that gradient as it is, or correct the layer's backward pass."
        )
    dtype = str(task.support.images_BCHW.dtype).removeprefix("torch.")
    raise ConfigError(
        f"The meta-gradient of {name} differs from a finite difference of its loss by {second.off:.0%} of {second.of} "
        f"({len(task.support)} images, inner steps: {net.rule.steps}, {dtype}), {cause}"
    )


def _relative(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """‖ours − theirs‖ / ‖theirs‖; 0 where both are 0."""
    away, size = norm([a - b for a, b in zip(ours, theirs, strict=True)]), norm(theirs)
    return away / size if size else away

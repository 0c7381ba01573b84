"""Compare the meta-gradient with a central difference of the outer loss, along one direction.

What second order adds to the first-order gradient is compared, since that is what a wrong second derivative changes,
and it may be a small part of the whole. The comparison takes inner steps of a rate of its own, with which it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metarepair.inner import FunctionalNet, adapt
from metarepair.memory import Memory
from metarepair.meta_gradient import TaskBatch, task_gradient
from metarepair.vectors import State

MOVE = 0.01  # length of the first inner step, as a share of the norm of the parameters
DIRECTIONS = 3  # at most; the inner gradient jumps where a ReLU opens, and a difference may meet such a place
# Steps as shares of the norm of the parameters. The first one counts whose difference is that of a step twice as long:
# it is above rounding, and below the distance to kinks.
FINE, ALLOWED = tuple(10.0**-k for k in range(12, 5, -1)), 0.02  # … of what second order adds
# In float32 rounding and kinks overlap, and no step may be such: the whole slope is compared then, and coarsely.
COARSE, ALLOWED_COARSELY = (1e-4, 1e-3, 1e-2), 0.5


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far the meta-gradient is off, as a share of what second order adds to it, and whether that is allowed.

    In float32, or where a layer computes in it, as a share of the whole.
    """

    off: float
    agrees: bool


def compare_with_difference(
    net: FunctionalNet, start: State, task: TaskBatch, memory: Memory | int
) -> Comparison:
    """The best agreement along DIRECTIONS; a wrong second derivative disagrees along all of them."""
    net = FunctionalNet(net.module, replace(net.rule, rate=_rate(net, start, task)))
    outer = _OuterLoss(net, start, task)
    second = task_gradient(net, start, net.buffers(), task, memory=memory, factors=outer.factors)
    first = task_gradient(net, start, net.buffers(), task, order="first", factors=outer.factors)
    found = Comparison(off=math.inf, agrees=False)
    for seed in range(DIRECTIONS):
        direction = _direction(second.gradient, start, seed)
        slopes = [_along(gradient, direction) for gradient in (second.gradient, first.gradient)]
        found = min(found, _compare(outer, direction, *slopes, loss=second.loss), key=lambda c: c.off)
        if found.agrees:
            break
    return found


class _OuterLoss:
    """The query loss after the inner steps, as a function of the parameters before them."""

    def __init__(self, net: FunctionalNet, start: State, task: TaskBatch) -> None:
        self.net, self.start, self.task = net, start, task
        self.factors = net.rate_factors() if net.rule.learned_rates else None
        # Statistics that support batches move are constants to the gradient, as in every autograd framework.
        _, self.statistics = adapt(net, start, net.buffers(), task.support, self.factors)

    def slope(self, direction: State, step: float) -> float:
        """The central difference along a direction."""
        return (self._at(direction, step) - self._at(direction, -step)) / (2 * step)

    def _at(self, direction: State, step: float) -> float:
        parameters = self.start | {k: self.start[k] + step * d for k, d in direction.items()}
        adapted, _ = adapt(self.net, parameters, self.net.buffers(), self.task.support, self.factors)
        with torch.no_grad(), self.net.query(adapted, self.statistics, self.task.query) as found:
            return float(found.loss)


def _compare(outer: _OuterLoss, direction: State, second: float, first: float, *, loss: float) -> Comparison:
    """`second` and `first`: slopes of the two gradients along the direction."""
    eps = torch.finfo(outer.task.support.images_BCHW.dtype).eps
    added = max(abs(second - first), 1e-4 * abs(second), 1e-12)
    for step in FINE if eps < 1e-12 else ():
        if 4 * eps * max(1.0, abs(loss)) / step > ALLOWED * added:
            continue  # too short to be above rounding
        truth = outer.slope(direction, step)
        if abs(truth - outer.slope(direction, 2 * step)) <= ALLOWED * added:
            off = abs(second - truth) / max(abs(truth - first), added * ALLOWED)
            return Comparison(off=off, agrees=off <= ALLOWED)
    truths = [outer.slope(direction, step) for step in COARSE]
    off = min(abs(second - truth) / max(abs(truth), added) for truth in truths)
    return Comparison(off=off, agrees=off <= ALLOWED_COARSELY)


def _rate(net: FunctionalNet, start: State, task: TaskBatch) -> float:
    """The inner rate whose first step is MOVE long; the rule's own where there is no gradient."""
    one = FunctionalNet(net.module, replace(net.rule, steps=1))
    factors = one.rate_factors() if net.rule.learned_rates else None
    moved, _ = adapt(one, start, one.buffers(), task.support, factors)
    step = _norm([moved[k] - start[k] for k in net.adapted])
    length = _norm([start[k] for k in net.adapted])
    return net.rule.rate * MOVE * length / step if step > 0 and length > 0 else net.rule.rate


def _direction(gradient: State, start: State, seed: int) -> State:
    """As long as the parameters: the gradient, differently weighed by tensor, and as much of a random direction."""
    generator = torch.Generator().manual_seed(seed)
    along = {k: g * (0.5 + torch.rand((), generator=generator).item()) for k, g in gradient.items()}
    random = {
        k: torch.randn(g.shape, generator=generator).to(g) * g.square().mean().sqrt()
        for k, g in gradient.items()
    }
    length = _norm([start[k] for k in gradient]) or 1.0
    parts = [_scaled(d, length / 2) for d in (along, random)]
    return {k: parts[0][k] + parts[1][k] for k in gradient}


def _scaled(direction: State, length: float) -> State:
    own = _norm(list(direction.values()))
    return {k: v * (length / own if own else 0.0) for k, v in direction.items()}


def _along(gradient: State, direction: State) -> float:
    return sum(float((gradient[k] * d).sum()) for k, d in direction.items())


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(v.square().sum()) for v in tensors))

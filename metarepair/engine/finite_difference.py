"""Compare gradients with central differences of the loss along a few directions.

For the meta-gradient, the comparison looks at what second order adds to the first-order gradient: a wrong second
derivative changes only that part, and it may be small. The inner rate is chosen so that this part is large enough to
measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metarepair.engine.inner import FunctionalNet, adapt
from metarepair.engine.memory import Memory
from metarepair.engine.meta_gradient import task_gradient
from metarepair.engine.types import Batch, TaskBatch
from metarepair.engine.vectors import State

MOVE = 0.01  # length of the first inner step, as a share of the norm of the parameters
# Steps as shares of the norm of the parameters. The first step that agrees with a step twice as long is used: it is
# long enough to be above rounding, and too short to reach a kink.
FINE, ALLOWED = tuple(10.0**-k for k in range(12, 5, -1)), 0.02
# In float32 no step may be both, since rounding and kinks overlap. Then the whole slope is compared, coarsely.
COARSE, ALLOWED_COARSELY = (1e-4, 1e-3, 1e-2), 0.5

Loss = Callable[[State], float]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The error of a gradient along the worst direction, as a share of what `of` names, and whether it is allowed."""

    off: float
    of: str
    agrees: bool


def compare_first(net: FunctionalNet, start: State, batch: Batch, gradient: State) -> Comparison:
    """Compare a gradient of a support batch's loss with differences of that loss."""

    def loss(parameters: State) -> float:
        with torch.no_grad(), net.support(parameters, net.buffers(), batch, moves=False) as forward:
            return float(forward.loss)

    zeros = {k: torch.zeros_like(v) for k, v in gradient.items()}
    return _compare(loss, start, gradient, zeros, of="it")


def compare_second(net: FunctionalNet, start: State, task: TaskBatch, memory: Memory | int) -> Comparison:
    """Compare the meta-gradient with differences of the query loss after the inner steps."""
    net = FunctionalNet(net.module, replace(net.rule, rate=_rate(net, start, task.support)))
    factors, buffers = net.rate_factors(), net.buffers()
    second = task_gradient(net, start, buffers, task, memory=memory, factors=factors).gradient
    first = task_gradient(net, start, buffers, task, order="first", factors=factors).gradient
    # Statistics that support batches update are constants to the gradient, as in every autograd framework.
    _, statistics = adapt(net, start, buffers, task.support, factors)

    def loss(parameters: State) -> float:
        adapted, _ = adapt(net, parameters, buffers, task.support, factors)
        with torch.no_grad(), net.query(adapted, statistics, task.query) as forward:
            return float(forward.loss)

    return _compare(loss, start, second, first, of="what second order adds to it")


def _compare(loss: Loss, start: State, gradient: State, base: State, *, of: str) -> Comparison:
    """Compare `gradient` minus `base` with differences of the loss minus the slope of `base`."""
    level = max(1.0, abs(loss(start)))
    slopes = [_Slope(loss, start, d, level=level) for d in _directions(gradient, base, start)]
    fine = [
        _off_finely(slope, _along(gradient, slope.direction), _along(base, slope.direction))
        for slope in slopes
    ]
    known = [off for off in fine if off is not None]
    if known:
        return Comparison(off=max(known), of=of, agrees=all(off <= ALLOWED for off in known))
    off = min(_off_coarsely(slope, _along(gradient, slope.direction)) for slope in slopes)
    return Comparison(off=off, of="the whole slope", agrees=off <= ALLOWED_COARSELY)


class _Slope:
    """Central differences of a loss at `start` along a direction; `level` is the size of the loss there."""

    def __init__(self, loss: Loss, start: State, direction: State, *, level: float) -> None:
        self.loss, self.start, self.direction, self.level = loss, start, direction, level
        self.eps = min(torch.finfo(d.dtype).eps for d in direction.values())

    def at(self, step: float) -> float:
        ahead, back = (
            self.loss(self.start | {k: self.start[k] + sign * step * d for k, d in self.direction.items()})
            for sign in (1, -1)
        )
        return (ahead - back) / (2 * step)


def _off_finely(slope: _Slope, whole: float, base: float) -> float | None:
    """The error as a share of the difference minus `base`; None if no step can measure it, as in float32."""
    added = max(abs(whole - base), 1e-4 * abs(whole), 1e-12)
    for step in FINE if slope.eps < 1e-12 else ():
        if 4 * slope.eps * slope.level / step > ALLOWED * added:
            continue  # too short to be above rounding
        truth = slope.at(step)
        if abs(truth - slope.at(2 * step)) <= ALLOWED * added:
            return abs(whole - truth) / max(abs(truth - base), added * ALLOWED)
    return None


def _off_coarsely(slope: _Slope, whole: float) -> float:
    return min(abs(whole - truth) / max(abs(truth), 1e-12) for truth in map(slope.at, COARSE))


def _rate(net: FunctionalNet, start: State, support: Batch) -> float:
    """The inner rate whose first step has the length MOVE; the rule's own rate if the gradient is 0."""
    one = FunctionalNet(net.module, replace(net.rule, steps=1))
    moved, _ = adapt(one, start, one.buffers(), support, one.rate_factors())
    step = norm([moved[k] - start[k] for k in net.adapted])
    length = norm([start[k] for k in net.adapted])
    return net.rule.rate * MOVE * length / step if step > 0 and length > 0 else net.rule.rate


def _directions(gradient: State, base: State, start: State) -> list[State]:
    """Two random directions with the norm of the parameters.

    The first scales each entry by the size of `gradient` minus `base` there. The second scales each tensor by the size
    of its gradient, so that entries where this difference is 0 count as well.
    """
    generator = torch.Generator().manual_seed(0)
    length = norm([start[k] for k in gradient]) or 1.0

    def random(sizes: State) -> State:
        drawn = {k: torch.randn(v.shape, generator=generator).to(v) * v for k, v in sizes.items()}
        own = norm(list(drawn.values()))
        return {k: v * (length / own if own else 0.0) for k, v in drawn.items()}

    added = {k: (g - base[k]).abs() for k, g in gradient.items()}
    by_tensor = {k: torch.full_like(g, float(g.square().mean().sqrt())) for k, g in gradient.items()}
    return [random(added), random(by_tensor)]


def _along(gradient: State, direction: State) -> float:
    return sum(float((gradient[k] * d).sum()) for k, d in direction.items())


def norm(tensors: Sequence[Tensor]) -> float:
    """The Euclidean norm of all entries together."""
    return math.sqrt(sum(float(v.square().sum()) for v in tensors))

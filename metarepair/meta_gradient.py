"""A task in, its query loss and the exact gradient of that loss by the parameters before adaptation out.

For the inner step u_{i+1} = μ u_i + ∇L_s(θ_i) + λ θ_i, θ_{i+1} = θ_i − D u_{i+1} (D the rates; zero for what is
not adapted), the second-order meta-gradient is the reverse recurrence
    v_T = ∇L_q(θ_T),  w_T = 0;    a = w_{i+1} − D v_{i+1},    v_i = v_{i+1} + λ a + H_i a,    w_i = μ a,
H_i the Hessian of L_s at θ_i. A step's product H_i a needs the graph of that step's gradient alone. It is kept
from the way forward (`graph`), or built again from θ_i (`recompute`), or kept for the last steps only: the same
operations either way, so the same gradient.
Source: Finn et al. 2017, Eq. 1 and Sec. 5.2 (first order); paper Algorithm 1, lines 6-10; Antoniou et al. 2019
(multi-step loss, learned rates); Nichol et al. 2018 (Reptile).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metarepair.inner import Batch, FunctionalNet, Point, State, gradients_of, inner_step, scaled

Order = Literal["second", "first", "reptile"]
Memory = Literal["graph", "recompute"]


@dataclass(frozen=True, kw_only=True)
class TaskBatch:
    """The tensors of a task. `clean` is there when clean tasks are mixed in."""

    support: Batch
    query: Batch
    clean: Batch | None = None


@dataclass(frozen=True, kw_only=True)
class TaskGradient:
    """The outer loss, the accuracy after adaptation, and the gradient in the parameters' own layout.

    `factors` is the gradient by the learned rates' factors, where there are any.
    """

    loss: float
    accuracy: float
    gradient: State
    factors: State | None = None


@dataclass(frozen=True, kw_only=True)
class OuterLoss:
    """What a task's adaptation is judged by: (1 − w) L_q + w L_clean, at the last step or at every one.

    `step_weights` [T] weigh the losses after steps 1 … T (MAML++'s multi-step loss); None: the last alone.
    """

    clean_weight: float = 0.0
    step_weights: tuple[float, ...] | None = None

    def weight(self, step: int, steps: int) -> float:
        """Weight of the loss after `step` inner steps (1 … T)."""
        if self.step_weights is None:
            return float(step == steps)
        return self.step_weights[step - 1] if step else 0.0

    def gradient(
        self, net: FunctionalNet, point: Point, buffers: State, task: TaskBatch
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Loss, accuracy and gradient by all parameters at one point."""
        leaves = point.leaves()
        loss, accuracy = net.query(leaves, buffers, task.query)
        if task.clean is not None and self.clean_weight > 0:
            clean, _ = net.query(leaves, buffers, task.clean)
            loss = (1 - self.clean_weight) * loss + self.clean_weight * clean
        return loss.detach(), accuracy, gradients_of(loss, list(leaves.values()))


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """A step's gradient by the adapted parameters, still differentiable by all of them."""

    leaves: State
    gradients: tuple[Tensor, ...]

    def hessian_product(self, a: Sequence[Tensor]) -> tuple[Tensor, ...]:
        outputs = [(g, part) for g, part in zip(self.gradients, a, strict=True) if g.requires_grad]
        return torch.autograd.grad(
            [g for g, _ in outputs],
            list(self.leaves.values()),
            grad_outputs=[part for _, part in outputs],
            allow_unused=True,
            materialize_grads=True,
        )


@dataclass(kw_only=True)
class _Trail:
    """What the way forward leaves for the way back: one entry a step."""

    points: list[Point]
    buffers: list[State]
    graphs: list[_Graph | None]
    directions: list[list[Tensor]]


def kept_steps(memory: Memory | int, steps: int) -> int:
    """For how many of the last inner steps a memory mode keeps the graphs."""
    if isinstance(memory, int):
        return min(memory, steps)
    return steps if memory == "graph" else 0


def task_gradient(
    net: FunctionalNet,
    parameters: State,
    buffers: State,
    task: TaskBatch,
    *,
    order: Order = "second",
    memory: Memory | int = "graph",
    outer: OuterLoss | None = None,
    factors: State | None = None,
    theta_on_host: bool = False,
    replayed_buffers: Sequence[State] | None = None,
) -> TaskGradient:
    """The gradient of the outer loss by θ_0, and by the rates' factors where these are given.

    order: second is exact; first drops H (FOMAML); reptile gives θ_0 − θ_T. memory: a mode, or the number of last
    steps whose graphs are kept. theta_on_host: the θ_i wait in host memory for their step.
    Statistics that support batches update are constants to the gradient, as in every autograd framework.
    `replayed_buffers` [T], if given, are used for the queries in place of the recorded ones: a finite-difference
    check holds them still.
    """
    outer = outer or OuterLoss()
    kept = kept_steps(memory, net.rule.steps) if order == "second" else 0
    end, trail = _forward(net, parameters, buffers, task, kept, factors, outer, theta_on_host=theta_on_host)
    if replayed_buffers is not None:
        trail.buffers = list(replayed_buffers)
    last = trail.buffers[-1]
    loss, accuracy, v = outer.gradient(net, end, last, task)
    if order == "reptile":
        v = tuple(parameters[k] - end.parameters[k] for k in parameters)
        return _result(parameters, v, loss, accuracy, None)
    weight = outer.weight(net.rule.steps, net.rule.steps)
    if weight != 1.0:
        loss, v = loss * weight, tuple(torch._foreach_mul(v, weight))
    del end
    return _backward(net, parameters, task, trail, loss, accuracy, v, factors, outer, order)


def _forward(
    net: FunctionalNet,
    parameters: State,
    buffers: State,
    task: TaskBatch,
    kept: int,
    factors: State | None,
    outer: OuterLoss,
    *,
    theta_on_host: bool,
) -> tuple[Point, _Trail]:
    """All inner steps: θ_T, and what each step leaves for the way back."""
    point = Point(parameters={k: v.detach() for k, v in parameters.items()})
    trail = _Trail(points=[], buffers=[], graphs=[], directions=[])
    for step in range(net.rule.steps):
        keep = step >= net.rule.steps - kept
        leaves = point.leaves(None if keep else net.adapted)
        loss, buffers = net.support(leaves, buffers, task.support, step=step)
        gradients = gradients_of(loss, [leaves[k] for k in net.adapted], create_graph=keep)
        del loss
        trail.graphs.append(_Graph(leaves=leaves, gradients=gradients) if keep else None)
        trail.points.append(_parked(net, point, on_host=theta_on_host and not keep))
        del leaves
        point, direction = inner_step(net, point, [g.detach() for g in gradients], step, factors)
        del gradients
        if factors is not None:
            trail.directions.append(direction)
        if outer.step_weights is not None or step == net.rule.steps - 1:
            trail.buffers.append(buffers)
    return point, trail


def _backward(
    net: FunctionalNet,
    parameters: State,
    task: TaskBatch,
    trail: _Trail,
    loss: Tensor,
    accuracy: Tensor,
    v: tuple[Tensor, ...],
    factors: State | None,
    outer: OuterLoss,
    order: Order,
) -> TaskGradient:
    """The recurrence from v_T to v_0. Each step's graph is freed as soon as it is used."""
    rule, names = net.rule, list(parameters)
    mine = [names.index(k) for k in net.adapted]
    w: list[Tensor] | None = None
    by_factor: list[Tensor] = []
    for step in reversed(range(rule.steps)):
        adjoint = [v[i] for i in mine]
        if factors is not None:
            u = trail.directions.pop()
            by_factor.append(torch.stack([-rule.rate * (a * b).sum() for a, b in zip(adjoint, u, strict=True)]))
        a = scaled(net, adjoint, step, factors)
        if w is not None:
            a = list(torch._foreach_add(a, w))
        point, graph = _fetched(trail.points.pop(), parameters), trail.graphs.pop()
        moved = list(v)
        if rule.weight_decay:
            for index, part in zip(mine, a, strict=True):
                moved[index] = moved[index] + rule.weight_decay * part
        if order == "second":
            graph = graph or _again(net, point, task, step)
            moved = list(torch._foreach_add(moved, list(graph.hessian_product(a))))
        del graph
        w = list(torch._foreach_mul(a, rule.momentum)) if rule.momentum else None
        weight = outer.weight(step, rule.steps)
        if weight:
            here, _, gradient = outer.gradient(net, point, trail.buffers[step - 1], task)
            loss = loss + weight * here
            moved = list(torch._foreach_add(moved, list(gradient), alpha=weight))
        v = tuple(moved)
    rates = None
    if factors is not None:
        columns_KT = torch.stack(by_factor[::-1], dim=1)
        rates = dict(zip(net.adapted, columns_KT.unbind(), strict=True))
    return _result(parameters, v, loss, accuracy, rates)


def _again(net: FunctionalNet, point: Point, task: TaskBatch, step: int) -> _Graph:
    """A step's gradient once more, with its graph. Its value does not depend on stored statistics that moved."""
    leaves = point.leaves()
    loss, _ = net.support(leaves, net.buffers(), task.support, step=step, moves=False)
    gradients = gradients_of(loss, [leaves[k] for k in net.adapted], create_graph=True)
    return _Graph(leaves=leaves, gradients=gradients)


def _parked(net: FunctionalNet, point: Point, *, on_host: bool) -> Point:
    adapted = {k: point.parameters[k] for k in net.adapted}
    return Point(parameters={k: v.cpu() for k, v in adapted.items()} if on_host else adapted)


def _fetched(point: Point, parameters: State) -> Point:
    own = {k: v.to(parameters[k].device) for k, v in point.parameters.items()}
    return Point(parameters={k: own.get(k, v.detach()) for k, v in parameters.items()})


def _result(
    parameters: State, v: Sequence[Tensor], loss: Tensor, accuracy: Tensor, factors: State | None
) -> TaskGradient:
    gradient = {k: part.detach() for k, part in zip(parameters, v, strict=True)}
    return TaskGradient(loss=loss.item(), accuracy=accuracy.item(), gradient=gradient, factors=factors)


def flatten(state: State) -> Tensor:
    """All tensors of a state in one vector, in the state's order."""
    return torch.cat([v.reshape(-1) for v in state.values()])


def unflatten(vector: Tensor, like: State) -> State:
    """The inverse of `flatten`: views into `vector`, shaped as `like`."""
    parts = torch.split(vector, [v.numel() for v in like.values()])
    return {k: p.view_as(v) for (k, v), p in zip(like.items(), parts, strict=True)}


def pairwise_sum(terms: list[Tensor]) -> Tensor:
    """The sum in a balanced binary tree.

    Contiguous halves of the terms on two workers, summed there and then together, take the very same tree: with
    a power of two of tasks, 1 and 2 workers give the same bits.
    """
    if len(terms) == 1:
        return terms[0]
    middle = (len(terms) + 1) // 2
    return pairwise_sum(terms[:middle]) + pairwise_sum(terms[middle:])

"""The exact gradient of a task's query loss by the parameters before adaptation.

For the inner step u_{i+1} = μ u_i + ∇L_s(θ_i) + λ θ_i, θ_{i+1} = θ_i − D u_{i+1} (D the rates; zero for what is
not adapted), the second-order meta-gradient is the reverse recurrence
    v_T = ∇L_q(θ_T),  w_T = 0;    a = w_{i+1} − D v_{i+1},    v_i = v_{i+1} + λ a + H_i a,    w_i = μ a,
H_i the Hessian of L_s at θ_i; a multi-step loss adds its weight times ∇L_q(θ_i) to v_i. A product H_i a needs the
graph of that step's gradient alone. It is kept from the way forward (`graph`), or built again from θ_i
(`recompute`), or kept for the last steps only: the same operations in any case, so the same gradient.
Source: Finn et al. 2017, Eq. 1 and Sec. 5.2 (first order); paper Algorithm 1, lines 6-10; Antoniou et al. 2019
(multi-step loss, learned rates); Nichol et al. 2018 (Reptile).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metarepair.engine.checks import check_batch, check_choice, check_number, check_state, differentiating
from metarepair.engine.inner import (
    FunctionalNet,
    Point,
    check_call,
    gradients_of,
    inner_step,
    scaled_by_rates,
)
from metarepair.engine.memory import Memory, plan_for
from metarepair.engine.types import TaskBatch
from metarepair.engine.vectors import State
from tasks.errors import ConfigError, DataError

# T inner steps

Order = Literal["second", "first", "reptile"]


@dataclass(frozen=True, kw_only=True)
class TaskGradient:
    """The outer loss, the accuracy after adaptation, and the gradient by every trainable parameter.

    `factors` is the gradient by the learned rates' factors, empty where there are none. `memory` says for which
    steps graphs were kept, and why.
    """

    loss: float
    accuracy: float
    gradient: State
    factors: State
    memory: str = ""


@dataclass(frozen=True, kw_only=True)
class OuterLoss:
    """What a task's adaptation is judged by: (1 − w) L_q + w L_clean, at the last step or at every one.

    `step_weights` [T] weigh the losses after steps 1 … T (MAML++'s multi-step loss); None: the last alone.
    """

    clean_weight: float = 0.0
    step_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_number("clean_weight", self.clean_weight, "from 0 to 1", least=0, most=1)
        for weight in self.step_weights or ():
            check_number("step_weights", weight, "a finite number for each step")

    def weight(self, after: int, steps: int) -> float:
        """Weight of the loss after `after` of `steps` inner steps."""
        if self.step_weights is None or after == 0:
            return float(after == steps)
        return self.step_weights[after - 1]

    def gradient(
        self, net: FunctionalNet, point: Point, buffers: State, task: TaskBatch
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Loss, accuracy and gradient by the trainable parameters at one point."""
        leaves = point.leaves(net.trainable)
        mixed = task.clean if self.clean_weight > 0 else None
        # The second pass stands inside the first one's block: both hold the same parameters in the same mode.
        with (
            net.query(leaves, buffers, task.query) as query,
            nullcontext() if mixed is None else net.query(leaves, buffers, mixed) as clean,
        ):
            loss = query.loss
            if clean is not None:
                loss = (1 - self.clean_weight) * loss + self.clean_weight * clean.loss
            gradient = gradients_of(net, loss, [leaves[k] for k in net.trainable])
        return loss.detach(), query.accuracy, gradient


@torch.enable_grad()
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
    replayed_buffers: Mapping[int, State] | None = None,
) -> TaskGradient:
    """The gradient of the outer loss by θ_0, and by the rates' `factors` ([T] each) where these are given.

    order: second is exact; first takes H for 0 (FOMAML); reptile gives θ_0 − θ_T, and nothing to the factors.
    memory: a mode, or the number of last steps whose graphs are kept; auto measures at every call (for many tasks
    plan once, with metarepair.engine.memory). theta_on_host: the θ_i wait in host memory.
    Statistics that support batches update are constants to the gradient, as in every autograd framework.
    `replayed_buffers` are the queries' buffers by the number of inner steps before, in place of the recorded
    ones: a finite-difference check holds them still.
    """
    outer, factors = outer or OuterLoss(), factors or {}
    check_call(net, parameters, buffers)
    check_choice("order", order, get_args(Order))
    check_task(net, task, outer, factors)
    plan = plan_for(net, parameters, buffers, task.support, memory, order)
    unrolled = _Unrolled(
        net=net,
        parameters={k: v.detach() for k, v in parameters.items()},
        buffers=buffers,
        task=task,
        outer=outer,
        factors=factors,
        on_host=theta_on_host,
    )
    end = unrolled.forward(plan.kept)
    unrolled.query_buffers |= replayed_buffers or {}
    return replace(unrolled.backward(end, order), memory=plan.reason)


class _InPlaceOf(torch.autograd.Function):
    """`held` with the derivative of `gradient`: a handle on the gradient's graph that does not hold its values."""

    @staticmethod
    def forward(ctx: Any, held: Tensor, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return held.detach()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[None, Tensor]:  # noqa: ARG004
        return None, grad[0]


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """The graph of a step's gradient by the adapted parameters, differentiable by all trainable ones."""

    parameters: State
    buffers: State
    handles: list[Tensor]

    @classmethod
    def of(
        cls, parameters: State, buffers: State, gradients: Sequence[Tensor], held: Sequence[Tensor]
    ) -> _Graph:
        """`held`: tensors of the adapted parameters' shapes that stay in memory anyway."""
        handles: list[Tensor] = [_InPlaceOf.apply(h, g) for h, g in zip(held, gradients, strict=True)]
        return cls(parameters=parameters, buffers=buffers, handles=handles)

    def hessian_product(self, net: FunctionalNet, a: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """H a by the trainable parameters; the module must hold what it held when the graph was made."""
        outputs = [(g, part) for g, part in zip(self.handles, a, strict=True) if g.requires_grad]
        with differentiating(net.module, second=lambda: True):
            return torch.autograd.grad(
                [g for g, _ in outputs],
                [self.parameters[k] for k in net.trainable],
                grad_outputs=[part for _, part in outputs],
                allow_unused=True,
                materialize_grads=True,
            )


class _Unrolled:
    """A task's inner loop: what its way forward leaves for the way back, an entry a step."""

    def __init__(
        self,
        *,
        net: FunctionalNet,
        parameters: State,
        buffers: State,
        task: TaskBatch,
        outer: OuterLoss,
        factors: State,
        on_host: bool,
    ) -> None:
        self.net, self.parameters, self.buffers, self.task = net, parameters, buffers, task
        self.outer, self.factors, self.on_host = outer, factors, on_host
        self.query_buffers: dict[int, State] = {}
        self._thetas: list[list[Tensor]] = []
        self._graphs: list[_Graph | None] = []
        self._directions: list[list[Tensor]] = []

    def forward(self, kept: int) -> Point:
        """All inner steps, keeping the graphs of the last `kept`; θ_T."""
        net, point, buffers = self.net, Point(parameters=self.parameters), self.buffers
        for step in range(net.rule.steps):
            keep = step >= net.rule.steps - kept
            leaves = point.leaves(net.trainable if keep else net.adapted)
            with net.support(leaves, buffers, self.task.support, step=step) as found:
                gradients = gradients_of(net, found.loss, [leaves[k] for k in net.adapted], create_graph=keep)
            theta = [point.parameters[k] for k in net.adapted]
            self._graphs.append(_Graph.of(leaves, buffers, gradients, theta) if keep else None)
            buffers = found.buffers
            self._thetas.append([v.cpu() for v in theta] if self.on_host and not keep else theta)
            del found, leaves, theta  # the graph of a step that is not kept goes here
            point, direction = inner_step(net, point, gradients, step, self.factors)
            del gradients  # a kept graph holds its own tensors and not these
            if self.factors:
                self._directions.append(direction)
            del direction
            if self.outer.weight(step + 1, net.rule.steps) or step + 1 == net.rule.steps:
                self.query_buffers[step + 1] = buffers
        return point

    def backward(self, end: Point, order: Order) -> TaskGradient:
        """The recurrence from v_T to v_0. A step's graph is freed as soon as it is used."""
        rule = self.net.rule
        loss, accuracy, gradient = self.outer.gradient(
            self.net, end, self.query_buffers[rule.steps], self.task
        )
        if order == "reptile":
            away = {k: self.parameters[k] - end.parameters[k] for k in self.net.trainable}
            still = {k: torch.zeros_like(v) for k, v in self.factors.items()}
            return TaskGradient(loss=loss.item(), accuracy=accuracy.item(), gradient=away, factors=still)
        del end
        weight = self.outer.weight(rule.steps, rule.steps)
        loss, v = weight * loss, list(torch._foreach_mul(gradient, weight))
        w: list[Tensor] | None = None
        by_step: list[Tensor] = []
        for step in reversed(range(rule.steps)):
            if self.factors:
                by_step.append(self._factor_gradient(v))
            v, w, here = self._step_back(step, v, w, order)
            loss = loss + here
        return TaskGradient(
            loss=loss.item(),
            accuracy=accuracy.item(),
            gradient=dict(zip(self.net.trainable, v, strict=True)),
            factors=dict(zip(self.factors, torch.stack(by_step[::-1], dim=1).unbind(), strict=True))
            if self.factors
            else {},
        )

    def _factor_gradient(self, v: list[Tensor]) -> Tensor:
        """−η ⟨v, u⟩ of every adapted tensor, in one tensor."""
        u, mine = self._directions.pop(), self._adapted_of(v)
        return torch.stack([-self.net.rule.rate * (a * b).sum() for a, b in zip(mine, u, strict=True)])

    def _step_back(
        self, step: int, v: list[Tensor], w: list[Tensor] | None, order: Order
    ) -> tuple[list[Tensor], list[Tensor] | None, Tensor | float]:
        """v_i (in v's own memory), w_i and the loss at θ_i from those of i + 1."""
        rule = self.net.rule
        a = scaled_by_rates(self.net, self._adapted_of(v), step, self.factors)
        if w is not None:
            torch._foreach_add_(a, w)
        graph, theta = self._graphs.pop(), self._thetas.pop()
        if rule.weight_decay:
            decay = dict(zip(self.net.adapted, torch._foreach_mul(a, rule.weight_decay), strict=True))
            names = self.net.trainable
            v = [part + decay[k] if k in decay else part for k, part in zip(names, v, strict=True)]
        if order == "second":
            torch._foreach_add_(v, self._hessian_product(graph, step, theta, a))
        w = list(torch._foreach_mul(a, rule.momentum)) if rule.momentum else None
        weight = self.outer.weight(step, rule.steps)
        if not weight:
            return v, w, 0.0
        here, _, gradient = self.outer.gradient(
            self.net, self._point(theta), self.query_buffers[step], self.task
        )
        torch._foreach_add_(v, gradient, alpha=weight)
        return v, w, weight * here

    def _hessian_product(
        self, graph: _Graph | None, step: int, theta: list[Tensor], a: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """H_i a, from the step's kept graph or from its gradient once more."""
        net, support = self.net, self.task.support
        if graph is not None:
            with net.holding_support(graph.parameters, graph.buffers, support, step=step):
                return graph.hessian_product(net, a)
        # Moved statistics do not matter to a step that is done again: they are not used where they move.
        leaves = self._point(theta).leaves(net.trainable)
        with net.support(leaves, self.buffers, support, step=step, moves=False) as found:
            mine = [leaves[k] for k in net.adapted]
            gradients = gradients_of(net, found.loss, mine, create_graph=True)
            again = _Graph.of(leaves, self.buffers, gradients, [v.detach() for v in mine])
            del gradients
            return again.hessian_product(net, a)

    def _point(self, theta: list[Tensor]) -> Point:
        """All parameters at a step, from the adapted ones wherever they waited."""
        moved = {k: v.to(self.parameters[k].device) for k, v in zip(self.net.adapted, theta, strict=True)}
        return Point(parameters=self.parameters | moved)

    def _adapted_of(self, v: list[Tensor]) -> list[Tensor]:
        mine = dict(zip(self.net.trainable, v, strict=True))
        return [mine[k] for k in self.net.adapted]


def check_task(net: FunctionalNet, task: TaskBatch, outer: OuterLoss, factors: State) -> None:
    """Raises ConfigError or DataError for what no gradient can be made of."""
    steps, weights = net.rule.steps, outer.step_weights
    for name, part in (("support", task.support), ("query", task.query), ("clean", task.clean)):
        if part is not None:
            check_batch(name, part.images_BCHW, part.labels_B)
    if outer.clean_weight > 0 and task.clean is None:
        raise DataError(
            f"clean_weight={outer.clean_weight}, and the task has no clean batch. Give it one, or 0."
        )
    if weights is not None and len(weights) != steps:
        raise ConfigError(
            f"step_weights has {len(weights)} weights for {steps} inner steps. Give one for each."
        )
    if not net.rule.learned_rates and not factors:
        return
    check_state("factors", factors, net.adapted)
    wrong = next((k for k, v in factors.items() if v.shape != (steps,)), None)
    if wrong is not None:
        shape = tuple(factors[wrong].shape)
        raise ConfigError(
            f"factors[{wrong!r}] has shape {shape}; it has one factor for each of {steps} steps."
        )

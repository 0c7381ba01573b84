"""Compute the exact gradient of a task's query loss with respect to the parameters before adaptation.

The inner step is u_{i+1} = μ u_i + ∇L_s(θ_i) + λ θ_i, θ_{i+1} = θ_i − D u_{i+1}, where D is diagonal and holds the
rates (zero for parameters that are not adapted). The second-order meta-gradient is v_0 of the reverse recurrence
    v_T = ∇L_q(θ_T),  w_T = 0;    a = w_{i+1} − D v_{i+1},    v_i = v_{i+1} + λ a + H_i a,    w_i = μ a,
where H_i is the Hessian of L_s at θ_i. A multi-step loss adds its weight times ∇L_q(θ_i) to v_i.

The product H_i a needs the graph of step i's gradient and no other. That graph is kept from the forward pass
(`graph`), rebuilt from θ_i (`recompute`), or kept for the last steps only. The operations are the same in every mode,
so the gradient is the same.
Source: paper Algorithm 1, lines 6-10; Finn et al. 2017, Eq. 1 and Sec. 5.2 (first order); Antoniou et al. 2019
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
    """What `task_gradient` returns.

    Attributes:
        loss: The outer loss L_s after adaptation (with `step_weights`, their weighted sum over steps).
        accuracy: Share of the query batch that the adapted parameters classify correctly, 0..1.
        gradient: Gradient of `loss` with respect to each trainable parameter before adaptation, in its shape and dtype
            (θ_0 − θ_T for the order "reptile").
        factors: Gradient with respect to the learned rates' factors, [T] each; empty without such factors.
        memory: For how many steps graphs were kept, and why, in words.
    """

    loss: float
    accuracy: float
    gradient: State
    factors: State
    memory: str = ""


@dataclass(frozen=True, kw_only=True)
class OuterLoss:
    """The loss that judges a task's adaptation: (1 − w) L_query + w L_clean, both mean cross entropies.

    Source: paper Algorithm 1, line 8 (w = 0); `step_weights`: Antoniou et al. 2019 (MAML++'s multi-step loss).

    Args:
        clean_weight: w, the weight of the task's clean batch, in 0..1.
        step_weights: Weights [T] of the loss after each of the T inner steps; None counts the last step only.

    Raises:
        ConfigError: A weight is outside its range.
    """

    clean_weight: float = 0.0
    step_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_number("clean_weight", self.clean_weight, "from 0 to 1", least=0, most=1)
        for weight in self.step_weights or ():
            check_number("step_weights", weight, "a finite number for each step")

    def weight(self, after: int, steps: int) -> float:
        """The weight of the loss after `after` of `steps` inner steps."""
        if self.step_weights is None or after == 0:
            return float(after == steps)
        return self.step_weights[after - 1]

    def gradient(
        self, net: FunctionalNet, point: Point, buffers: State, task: TaskBatch
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """The loss, the accuracy, and the gradient with respect to the trainable parameters at one point."""
        leaves = point.leaves(net.trainable)
        mixed = task.clean if self.clean_weight > 0 else None
        # The second pass runs inside the first one's block, as both hold the same parameters in the same mode.
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
    """Adapt to a task's support batch and differentiate the outer loss with respect to the parameters before it.

    The statistics that support batches update are constants to the gradient, as in every autograd framework. Nothing
    that is passed in is changed.

    Source: paper Algorithm 1, lines 7, 8 and 10; Finn et al. 2017, Eq. 1.

    Args:
        net: The model and its inner rule.
        parameters: θ_0: all parameters, by name; `net.parameters()` for the module's own.
        buffers: All buffers, by name; `net.buffers()` for the module's own.
        task: The support and query batches, and clean images where `outer` weighs them.
        order: "second" is the exact gradient. "first" sets the Hessians to 0 (FOMAML). "reptile" returns θ_0 − θ_T as
            the gradient, and zeros for the factors.
        memory: The steps whose graphs are kept: "graph" (all), "recompute" (none), the number of last steps, or "auto".
            "auto" measures in every call; for many tasks call `plan_for` once and give its `kept`.
        outer: The loss that judges the adapted parameters; None for the query loss after the last step.
        factors: Factors of learned rates, [T] for each adapted tensor, such as `net.rate_factors()`. Needed where the
            rule has `learned_rates`.
        theta_on_host: Keep the θ_i of recomputed steps in host memory, which only matters on a GPU.
        replayed_buffers: Buffers for query passes, by the number of inner steps before them, in place of those that the
            inner loop gives. A finite-difference check uses this to hold the statistics constant.

    Returns:
        The loss, the accuracy, and the gradient for each trainable parameter and factor.

    Raises:
        ConfigError: Gradients are off (torch.inference_mode()), an option is not one of those above, a state has
            missing or extra names, no selected parameter is trainable, or autograd cannot differentiate the model.
        DataError: A batch is empty or has a different number of labels than of images, or `outer` needs a clean batch
            that the task does not have.

    Example:
        >>> import torch
        >>> from metarepair.engine import Batch, FunctionalNet, InnerRule, TaskBatch, task_gradient
        >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
        >>> net = FunctionalNet(module, InnerRule(steps=2, rate=0.1, batch_norm="frozen"))
        >>> support, query = (
        ...     Batch(images_BCHW=torch.randn(6, 3, 4, 4), labels_B=torch.arange(6) % 3) for _ in range(2)
        ... )
        >>> task = TaskBatch(support=support, query=query)
        >>> result = task_gradient(net, net.parameters(), net.buffers(), task)
        >>> {name: tuple(gradient.shape) for name, gradient in result.gradient.items()}
        {'1.weight': (3, 48), '1.bias': (3,)}
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
    """The values of `held` with the derivative of `gradient`: a handle on the gradient's graph without its values."""

    @staticmethod
    def forward(ctx: Any, held: Tensor, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return held.detach()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[None, Tensor]:  # noqa: ARG004
        return None, grad[0]


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """The graph of one step's gradient; the step adapts some parameters, and the graph reaches all trainable ones."""

    parameters: State
    buffers: State
    handles: list[Tensor]

    @classmethod
    def of(
        cls, parameters: State, buffers: State, gradients: Sequence[Tensor], held: Sequence[Tensor]
    ) -> _Graph:
        """Make handles on `gradients` from `held`: tensors of the same shapes that stay in memory anyway."""
        handles: list[Tensor] = [_InPlaceOf.apply(h, g) for h, g in zip(held, gradients, strict=True)]
        return cls(parameters=parameters, buffers=buffers, handles=handles)

    def hessian_product(self, net: FunctionalNet, a: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """H a for the trainable parameters; the module must hold what it held when the graph was built."""
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
    """A task's unrolled inner loop: `forward` saves one entry per step; `backward` consumes them."""

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
        self.query_buffers: dict[int, State] = {0: buffers}
        self._thetas: list[list[Tensor]] = []
        self._graphs: list[_Graph | None] = []
        self._directions: list[list[Tensor]] = []

    def forward(self, kept: int) -> Point:
        """Run all inner steps, keep the graphs of the last `kept`, and return the end, θ_T (Algorithm 1, line 7)."""
        net, point, buffers = self.net, Point(parameters=self.parameters), self.buffers
        for step in range(net.rule.steps):
            keep = step >= net.rule.steps - kept
            leaves = point.leaves(net.trainable if keep else net.adapted)
            with net.support(leaves, buffers, self.task.support, step=step) as forward:
                gradients = gradients_of(
                    net, forward.loss, [leaves[k] for k in net.adapted], create_graph=keep
                )
            theta = [point.parameters[k] for k in net.adapted]
            self._graphs.append(_Graph.of(leaves, buffers, gradients, theta) if keep else None)
            buffers = forward.buffers
            self._thetas.append([v.cpu() for v in theta] if self.on_host and not keep else theta)
            del forward, leaves, theta  # frees the graph of a step that is not kept
            point, direction = inner_step(net, point, gradients, step, self.factors)
            del gradients  # a kept graph holds tensors of its own, not these
            if self.factors:
                self._directions.append(direction)
            del direction
            if self.outer.weight(step + 1, net.rule.steps) or step + 1 == net.rule.steps:
                self.query_buffers[step + 1] = buffers
        return point

    def backward(self, end: Point, order: Order) -> TaskGradient:
        """Run the recurrence from v_T to v_0 (Algorithm 1, lines 8 and 10). Each graph is freed after its use."""
        rule = self.net.rule
        loss, accuracy, gradient = self.outer.gradient(
            self.net, end, self.query_buffers[rule.steps], self.task
        )
        if order == "reptile":
            moved = {k: self.parameters[k] - end.parameters[k] for k in self.net.trainable}
            zeros = {k: torch.zeros_like(v) for k, v in self.factors.items()}
            return TaskGradient(loss=loss.item(), accuracy=accuracy.item(), gradient=moved, factors=zeros)
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
        """−η ⟨v, u⟩ for each adapted tensor, stacked."""
        u, adapted = self._directions.pop(), self._adapted_of(v)
        return torch.stack([-self.net.rule.rate * (a * b).sum() for a, b in zip(adapted, u, strict=True)])

    def _step_back(
        self, step: int, v: list[Tensor], w: list[Tensor] | None, order: Order
    ) -> tuple[list[Tensor], list[Tensor] | None, Tensor | float]:
        """v_i, w_i and the weighted loss at θ_i, from v_{i+1} and w_{i+1}; v_i may overwrite v_{i+1}."""
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
        """H_i a, from the step's kept graph or from a graph that is rebuilt."""
        net, support = self.net, self.task.support
        if graph is not None:
            with net.holding_support(graph.parameters, graph.buffers, support, step=step):
                return graph.hessian_product(net, a)
        # The statistics at this step do not matter: where a support batch updates them, it is not normalised by them.
        leaves = self._point(theta).leaves(net.trainable)
        with net.support(leaves, self.buffers, support, step=step, moves=False) as forward:
            adapted = [leaves[k] for k in net.adapted]
            gradients = gradients_of(net, forward.loss, adapted, create_graph=True)
            rebuilt = _Graph.of(leaves, self.buffers, gradients, [v.detach() for v in adapted])
            del gradients
            return rebuilt.hessian_product(net, a)

    def _point(self, theta: list[Tensor]) -> Point:
        """All parameters at a step, with the adapted ones moved back to their device."""
        moved = {k: v.to(self.parameters[k].device) for k, v in zip(self.net.adapted, theta, strict=True)}
        return Point(parameters=self.parameters | moved)

    def _adapted_of(self, v: list[Tensor]) -> list[Tensor]:
        by_name = dict(zip(self.net.trainable, v, strict=True))
        return [by_name[k] for k in self.net.adapted]


def check_task(net: FunctionalNet, task: TaskBatch, outer: OuterLoss, factors: State) -> None:
    """Raise ConfigError or DataError if the batches, the step weights or the factors do not fit the net."""
    steps, weights = net.rule.steps, outer.step_weights
    for name, part in (("support", task.support), ("query", task.query), ("clean", task.clean)):
        if part is not None:
            check_batch(name, part.images_BCHW, part.labels_B)
    if outer.clean_weight > 0 and task.clean is None:
        raise DataError(
            f"clean_weight={outer.clean_weight}, but the task has no clean batch. Give it one, or set clean_weight=0."
        )
    if weights is not None and len(weights) != steps:
        raise ConfigError(
            f"step_weights has {len(weights)} weights for {steps} inner steps. Give one for each step."
        )
    if not net.rule.learned_rates and not factors:
        return
    check_state("factors", factors, net.adapted)
    wrong = next((k for k, v in factors.items() if v.shape != (steps,)), None)
    if wrong is not None:
        shape = tuple(factors[wrong].shape)
        raise ConfigError(f"factors[{wrong!r}] has shape {shape}. Give one factor for each of {steps} steps.")

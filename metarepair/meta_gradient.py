"""A task in, its query loss and the exact gradient of that loss by the parameters before adaptation out.

For inner SGD θ_{i+1} = θ_i − η ∇L_s(θ_i) the second-order meta-gradient is the reverse recurrence
    v_K = ∇L_q(θ_K),    v_i = v_{i+1} − η H_i v_{i+1},    H_i the Hessian of L_s at θ_i.
`graph` lets autograd keep all steps; `recompute` keeps the θ_i and rebuilds one step at a time.
Source: Finn et al. 2017, Eq. 1 and Sec. 5.2 (first order); paper Algorithm 1, lines 6-10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metarepair.inner import Batch, FunctionalNet, State, gradients_of, sgd_step

Order = Literal["second", "first"]
Memory = Literal["graph", "recompute"]


@dataclass(frozen=True, kw_only=True)
class TaskBatch:
    """The tensors of a task. `clean` is there when clean tasks are mixed in."""

    support: Batch
    query: Batch
    clean: Batch | None = None


@dataclass(frozen=True, kw_only=True)
class TaskGradient:
    """Query loss and accuracy after adaptation, and the gradient in the parameters' own layout."""

    loss: float
    accuracy: float
    gradient: State


def task_gradient(
    net: FunctionalNet,
    parameters: State,
    buffers: State,
    task: TaskBatch,
    *,
    order: Order = "second",
    memory: Memory = "graph",
    clean_weight: float = 0.0,
    replayed_buffers: State | None = None,
) -> TaskGradient:
    """The gradient of (1 − w) L_q(θ_K) + w L_clean(θ_K) by θ_0.

    Statistics that support batches update are constants to the gradient, as in every autograd framework.
    `replayed_buffers`, if given, are used for the query in place of the recorded ones: a finite-difference check
    holds them still.
    """
    differentiate = _by_graph if memory == "graph" or order == "first" else _by_recomputation
    return differentiate(net, parameters, buffers, task, order, clean_weight, replayed_buffers)


def _outer_loss(
    net: FunctionalNet, parameters: State, buffers: State, task: TaskBatch, clean_weight: float
) -> tuple[Tensor, Tensor]:
    loss, accuracy = net.query(parameters, buffers, task.query)
    if task.clean is not None and clean_weight > 0:
        loss = (1 - clean_weight) * loss + clean_weight * net.query(parameters, buffers, task.clean)[0]
    return loss, accuracy


def _leaves(parameters: State) -> State:
    return {k: v.detach().requires_grad_() for k, v in parameters.items()}


def _by_graph(
    net: FunctionalNet,
    parameters: State,
    buffers: State,
    task: TaskBatch,
    order: Order,
    clean_weight: float,
    replayed_buffers: State | None,
) -> TaskGradient:
    start = _leaves(parameters)
    current = start
    for _ in range(net.rule.steps):
        loss, buffers = net.support(current, buffers, task.support)
        gradients = gradients_of(loss, current, create_graph=order == "second")
        current = sgd_step(current, gradients, net.rule.rate)
    loss, accuracy = _outer_loss(net, current, replayed_buffers or buffers, task, clean_weight)
    gradient = dict(zip(start, gradients_of(loss, start), strict=True))
    return TaskGradient(loss=loss.item(), accuracy=accuracy.item(), gradient=gradient)


def _by_recomputation(
    net: FunctionalNet,
    parameters: State,
    buffers: State,
    task: TaskBatch,
    order: Order,  # noqa: ARG001  first order has no recurrence: it goes by graph
    clean_weight: float,
    replayed_buffers: State | None,
) -> TaskGradient:
    thetas, states = [parameters], [buffers]
    for _ in range(net.rule.steps):
        leaves = _leaves(thetas[-1])
        loss, after = net.support(leaves, states[-1], task.support)
        gradients = gradients_of(loss, leaves)
        with torch.no_grad():
            thetas.append(sgd_step(thetas[-1], gradients, net.rule.rate))
        states.append(after)
    leaves = _leaves(thetas.pop())
    loss, accuracy = _outer_loss(net, leaves, replayed_buffers or states.pop(), task, clean_weight)
    v = gradients_of(loss, leaves)
    for theta, state in zip(reversed(thetas), reversed(states[: len(thetas)]), strict=True):
        leaves = _leaves(theta)
        support_loss, _ = net.support(leaves, state, task.support)
        gradients = gradients_of(support_loss, leaves, create_graph=True)
        hessian_v = torch.autograd.grad(
            gradients, list(leaves.values()), grad_outputs=v, allow_unused=True, materialize_grads=True
        )
        v = tuple(a - net.rule.rate * b for a, b in zip(v, hessian_v, strict=True))
    gradient = dict(zip(parameters, v, strict=True))
    return TaskGradient(loss=loss.item(), accuracy=accuracy.item(), gradient=gradient)


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

"""Compute a task's meta-gradient with common alternatives: `higher`, TorchOpt, and a plain torch.func loop.

In all of them batch norm uses the batch's own statistics. Each returns the gradient as one vector in the parameters'
order.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from metarepair.engine.types import TaskBatch


def _vector(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([g.reshape(-1) for g in gradients])


def higher_gradient(module: nn.Module, task: TaskBatch, *, steps: int, rate: float) -> Tensor:
    """Return the gradient by unrolling with `higher` (Grefenstette et al. 2019)."""
    higher: Any = import_module("higher")
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    with higher.innerloop_ctx(module, optimizer, copy_initial_weights=False) as (unrolled, inner):
        for _ in range(steps):
            inner.step(cross_entropy(unrolled(task.support.images_BCHW), task.support.labels_B))
        loss = cross_entropy(unrolled(task.query.images_BCHW), task.query.labels_B)
        gradients = torch.autograd.grad(loss, list(module.parameters()))
    module.eval()
    return _vector(gradients)


def torchopt_gradient(module: nn.Module, task: TaskBatch, *, steps: int, rate: float) -> Tensor:
    """Return the gradient by TorchOpt's functional SGD (Ren et al. 2023) on a functional call of the module."""
    torchopt: Any = import_module("torchopt")
    module.train()
    start = {k: v.detach().clone().requires_grad_() for k, v in module.named_parameters()}
    names, parameters = list(start), tuple(start.values())
    optimizer = torchopt.sgd(lr=rate)
    state = optimizer.init(parameters)
    for _ in range(steps):
        loss = _loss(module, dict(zip(names, parameters, strict=True)), task.support)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        updates, state = optimizer.update(gradients, state, inplace=False)
        parameters = torchopt.apply_updates(parameters, updates, inplace=False)
    loss = _loss(module, dict(zip(names, parameters, strict=True)), task.query)
    found = torch.autograd.grad(loss, list(start.values()))
    module.eval()
    return _vector(found)


def torch_func_gradient(module: nn.Module, task: TaskBatch, *, steps: int, rate: float) -> Tensor:
    """Return the gradient by a plain loop: torch.func.functional_call, autograd.grad with create_graph, SGD steps."""
    module.train()
    start = {k: v.detach().clone().requires_grad_() for k, v in module.named_parameters()}
    moved = dict(start)
    for _ in range(steps):
        loss = _loss(module, moved, task.support)
        gradients = torch.autograd.grad(loss, list(moved.values()), create_graph=True)
        moved = {k: v - rate * g for (k, v), g in zip(moved.items(), gradients, strict=True)}
    found = torch.autograd.grad(_loss(module, moved, task.query), list(start.values()))
    module.eval()
    return _vector(found)


def _loss(module: nn.Module, parameters: dict[str, Tensor], part: Any) -> Tensor:
    buffers = {k: v.clone() for k, v in module.named_buffers()}
    return cross_entropy(functional_call(module, (parameters, buffers), (part.images_BCHW,)), part.labels_B)

"""States (tensors by name) and vectors: one into the other, and sums whose bits do not depend on the workers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# P parameters

State = dict[str, Tensor]


def copied_parameters(module: nn.Module) -> State:
    """A module's parameters, as tensors of their own."""
    return {k: v.detach().clone() for k, v in module.named_parameters()}


def copied_buffers(module: nn.Module) -> State:
    """A module's buffers, as tensors of their own."""
    return {k: v.detach().clone() for k, v in module.named_buffers()}


@torch.no_grad()
def put_state(module: nn.Module, state: State) -> None:
    """Copies parameters and buffers into a module; `state` has all of them."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        tensor.copy_(state[name])


def flatten(state: State) -> Tensor:
    """All tensors of a state in one vector [P], in the state's order."""
    return torch.cat([v.reshape(-1) for v in state.values()])


def unflatten(vector_P: Tensor, like: State) -> State:
    """The inverse of `flatten`: views into the vector, shaped as `like`."""
    parts = torch.split(vector_P, [v.numel() for v in like.values()])
    return {k: p.view_as(v) for (k, v), p in zip(like.items(), parts, strict=True)}


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors of floating-point numbers with a NaN or an infinity."""
    return [k for k, v in state.items() if v.is_floating_point() and not bool(v.isfinite().all())]


def pairwise_sum(terms: list[Tensor]) -> Tensor:
    """The sum in a balanced binary tree.

    Contiguous halves of the terms on two workers, summed there and then together, take the very same tree: with
    a power of two of tasks, 1 and 2 workers give the same bits.
    """
    if len(terms) == 1:
        return terms[0]
    middle = (len(terms) + 1) // 2
    return pairwise_sum(terms[:middle]) + pairwise_sum(terms[middle:])

"""Named tensors (`State`), flat vectors, and sums whose bits do not depend on the number of workers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# P parameters

State = dict[str, Tensor]  # parameters or buffers, by the names that the module lists


def copied_parameters(module: nn.Module) -> State:
    """Copies of a module's parameters, by name."""
    return {k: v.detach().clone() for k, v in module.named_parameters()}


def copied_buffers(module: nn.Module) -> State:
    """Copies of a module's buffers, by name."""
    return {k: v.detach().clone() for k, v in module.named_buffers()}


@torch.no_grad()
def put_state(module: nn.Module, state: State) -> None:
    """Copy all parameters and buffers of a module from `state`, in place."""
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
    """Names of the floating-point tensors that contain NaN or infinity."""
    return [k for k, v in state.items() if v.is_floating_point() and not bool(v.isfinite().all())]


def pairwise_sum(terms: list[Tensor]) -> Tensor:
    """The sum of the terms, added in a balanced binary tree.

    Two workers that each add a contiguous half of the terms, and then add the two results, follow the same tree. With
    a power of two of tasks, 1 and 2 workers therefore give the same bits.
    """
    if len(terms) == 1:
        return terms[0]
    middle = (len(terms) + 1) // 2
    return pairwise_sum(terms[:middle]) + pairwise_sum(terms[middle:])

"""A name of torch.optim and its options in, the optimizer out. torch is loaded when one is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

OPTIMIZERS = (
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
)
# The rate is a setting of its own, and these would change how states are kept or what is differentiated.
RESERVED = {"self", "params", "lr", "capturable", "differentiable", "fused"}


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that torch.optim's `name` does not take, or a value that it refuses."""
    import torch

    known = sorted(set(inspect.signature(getattr(torch.optim, name)).parameters) - RESERVED)
    unknown = [key for key in options if key not in known]
    if unknown:
        raise ValueError(f"outer_options: {name} takes no {unknown[0]!r}. It takes: {', '.join(known)}")
    try:
        make_optimizer(name, [torch.zeros(1)], options, lr=1e-3)
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise ValueError(f"outer_options of {name}: {error}") from error


def make_optimizer(name: str, tensors: list[Tensor], options: Mapping[str, Any], *, lr: float) -> Optimizer:
    """torch.optim's `name` over `tensors`."""
    import torch

    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    made: Optimizer = getattr(torch.optim, name)(tensors, lr=lr, **given)
    return made

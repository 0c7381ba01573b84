"""A name of torch.optim and its options in, the optimizer out. torch is loaded when one is asked for."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metarepair.config.section import in_yaml

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
LENGTHS = {"betas": 2, "etas": 2, "step_sizes": 2}
BELOW_ONE = {"momentum"}  # of any optimizer
BELOW_ONE_OF = {("RMSprop", "alpha"), ("ASGD", "alpha"), ("Adadelta", "rho")}


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that torch.optim's `name` does not take, or a value that it refuses."""
    import torch

    known = sorted(set(inspect.signature(getattr(torch.optim, name)).parameters) - RESERVED)
    unknown = [key for key in options if key not in known]
    if unknown:
        raise ValueError(f"outer_options: {name} takes no {unknown[0]!r}. It takes: {', '.join(known)}")
    for key, value in options.items():
        _check_meant(name, key, value)
    try:
        after = _trial_step(name, options)
    except (ValueError, TypeError, IndexError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"outer_options of {name}: {' '.join(str(error).split())}") from error
    if not all(map(math.isfinite, after)):
        raise ValueError(
            f"outer_options of {name}: {in_yaml(dict(options))} takes a parameter of 1 to {after[1]}, and one without "
            f"gradient to {after[0]}, in one step. Leave out what was changed, or take a value nearer to torch's own."
        )


def _trial_step(name: str, options: Mapping[str, Any]) -> list[float]:
    """Where two steps take a parameter without gradient and one with: some options fail in a step only."""
    import torch

    tensor = torch.ones(2)
    optimizer = make_optimizer(name, [tensor], options, lr=1e-3)
    for _ in range(2):
        tensor.grad = torch.tensor([0.0, 0.5])
        optimizer.step()
    found: list[float] = tensor.tolist()
    return found


def _check_meant(name: str, key: str, value: Any) -> None:
    """Raises ValueError for a number that torch takes and nobody can mean."""
    length, below_one = LENGTHS.get(key), key in BELOW_ONE or (name, key) in BELOW_ONE_OF
    if length is not None and (not isinstance(value, list | tuple) or len(value) != length):
        raise ValueError(
            f"outer_options of {name}: {key}={in_yaml(value)} must be a list of {length} numbers"
        )
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if below_one and not (number and 0 <= value < 1):
        raise ValueError(
            f"outer_options of {name}: {key}={in_yaml(value)} must be a number from 0 to below 1"
        )


def make_optimizer(name: str, tensors: list[Tensor], options: Mapping[str, Any], *, lr: float) -> Optimizer:
    """torch.optim's `name` over `tensors`."""
    import torch

    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    made: Optimizer = getattr(torch.optim, name)(tensors, lr=lr, **given)
    return made

"""Build and check the outer optimizer, one of torch.optim. torch is imported only when one is used."""

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
# The rate has its own setting; the others would change how states are kept or what is differentiated.
RESERVED = {"self", "params", "lr", "capturable", "differentiable", "fused"}
LENGTHS = {"betas": 2, "etas": 2, "step_sizes": 2}
BELOW_ONE = {"momentum"}  # in every optimizer
BELOW_ONE_OF = {("RMSprop", "alpha"), ("ASGD", "alpha"), ("Adadelta", "rho")}


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that optimizer `name` does not take, or a value that it cannot use."""
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
            f"outer_options of {name}: {in_yaml(dict(options))} moves a parameter from 1 to {after[1]} in two steps, "
            f"and one whose gradient is 0 to {after[0]}. Leave out an option, or set it nearer to torch's default."
        )


def _trial_step(name: str, options: Mapping[str, Any]) -> list[float]:
    """Return two parameters, one with gradient 0 and one with 0.5, after two steps from 1.

    Some options raise an error only in a step.
    """
    import torch

    tensor = torch.ones(2)
    optimizer = make_optimizer(name, [tensor], options, lr=1e-3)
    for _ in range(2):
        tensor.grad = torch.tensor([0.0, 0.5])
        optimizer.step()
    found: list[float] = tensor.tolist()
    return found


def _check_meant(name: str, key: str, value: Any) -> None:
    """Raise ValueError for a value that torch accepts although it makes no sense."""
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
    """Build torch.optim's optimizer `name` for `tensors`, with learning rate `lr`."""
    import torch

    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    made: Optimizer = getattr(torch.optim, name)(tensors, lr=lr, **given)
    return made

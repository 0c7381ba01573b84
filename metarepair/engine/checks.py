"""Validate the arguments of the engine; each error says in one paragraph what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tasks.errors import ConfigError, DataError, UserError, near_names


def check_number(
    name: str,
    value: Any,
    allowed: str,
    *,
    whole: bool = False,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Raises ConfigError for a value that is no finite number of the range, which `allowed` says in words."""
    kinds = int if whole else (int, float)
    number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not (least <= value <= most and above < value < below):
        raise ConfigError(f"{name}={value!r}: must be {allowed}.")


def check_choice(name: str, value: Any, choices: Sequence[str], *, more: str = "") -> None:
    """Raises ConfigError for a value that is none of the choices."""
    if not isinstance(value, str) or value not in choices:
        near = near_names(value, choices) if isinstance(value, str) else ""
        allowed = f"{', '.join(choices)}{', ' if more else ''}{more}"
        raise ConfigError(f"{name}={value!r}{near or ':'} must be one of {allowed}.")


def check_parts(parts: Any) -> None:
    """Raises ConfigError for anything but a tuple or list of names."""
    named = isinstance(parts, tuple | list) and len(parts) > 0
    if not named or not all(isinstance(part, str) and part for part in parts):
        hint = f" Write ({parts!r},)." if isinstance(parts, str) and parts else ""
        raise ConfigError(f"parts={parts!r}: must be a tuple of names, such as ('head',) or ('*',).{hint}")


def check_state(name: str, state: Mapping[str, Tensor], keys: Sequence[str]) -> None:
    """Raises ConfigError for a state with other keys than the net's."""
    if state.keys() == set(keys):
        return
    missing, extra = [k for k in keys if k not in state], [k for k in state if k not in keys]
    said = f"has no {missing[0]!r}" if missing else f"has {extra[0]!r}, which the net has not"
    raise ConfigError(
        f"{name} {said} ({len(missing)} missing, {len(extra)} too many of {len(keys)}). Start from "
        f"{'rate_factors' if name == 'factors' else name}() of the FunctionalNet."
    )


def check_batch(name: str, images_BCHW: Tensor, labels_B: Tensor) -> None:
    """Raises DataError for a batch that is empty, or whose labels are of another number."""
    if len(images_BCHW) == 0 or len(images_BCHW) != len(labels_B):
        raise DataError(
            f"The {name} batch has {len(images_BCHW)} images and {len(labels_B)} labels; both must be of one number, "
            "from 1."
        )


def no_path(module: nn.Module, count: int) -> ConfigError:
    """What to say where no derivative is connected with any of `count` parameters."""
    return ConfigError(
        f"Autograd finds no path from the logits of {type(module).__name__} to any of the {count} tensors that are to "
        "be adapted. What runs under torch.no_grad(), is detached or made a number by .item() has no gradient: let the "
        "forward pass do without these, or adapt other parts (inner.parts)."
    )


@contextmanager
def differentiating(module: nn.Module, *, second: Callable[[], bool]) -> Iterator[None]:
    """Raises ConfigError for any error of a backward pass; layers raise what they like there.

    `second` is asked then: does the net have a first derivative, so that only a second one is missing?
    """
    try:
        yield
    except (torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:
        raise _no_derivative(module, error, second=second()) from error


def _no_derivative(module: nn.Module, error: Exception, *, second: bool) -> ConfigError:
    said = " ".join(str(error).split())[:300] or "without a message"
    raised = f"{type(error).__name__}: {said}"
    if second:
        return ConfigError(
            f"{type(module).__name__} has a first derivative in PyTorch, but no second one ({raised}). Set order: "
            "first (train.order in a run's settings), which needs none, or replace the layer that raises this."
        )
    return ConfigError(
        f"PyTorch cannot differentiate {type(module).__name__} by torch.autograd.grad ({raised}), and every repair by "
        "gradient steps needs that. Replace the layer that raises this, or use a method without gradients (bn_adapt)."
    )

"""Validate the engine's arguments; raise a UserError with the remedy."""

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
    """Raise ConfigError unless `value` is a finite number in the range, which `allowed` describes in words."""
    kinds = int if whole else (int, float)
    number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not (least <= value <= most and above < value < below):
        raise ConfigError(f"{name}={value!r}: must be {allowed}.")


def check_choice(name: str, value: Any, choices: Sequence[str], *, more: str = "") -> None:
    """Raise ConfigError unless `value` is one of the choices; `more` describes other allowed values in the message."""
    if not isinstance(value, str) or value not in choices:
        near = near_names(value, choices) if isinstance(value, str) else ""
        allowed = f"{', '.join(choices)}{', ' if more else ''}{more}"
        raise ConfigError(f"{name}={value!r}{near or ':'} must be one of {allowed}.")


def check_parts(parts: Any) -> None:
    """Raise ConfigError unless `parts` is a tuple or list with at least one name."""
    named = isinstance(parts, tuple | list) and len(parts) > 0
    if not named or not all(isinstance(part, str) and part for part in parts):
        hint = f" Write ({parts!r},)." if isinstance(parts, str) and parts else ""
        raise ConfigError(f"parts={parts!r}: must be a tuple of names, such as ('head',) or ('*',).{hint}")


def check_state(name: str, state: Mapping[str, Tensor], keys: Sequence[str]) -> None:
    """Raise ConfigError unless `state` has exactly the given keys."""
    if state.keys() == set(keys):
        return
    missing, extra = [k for k in keys if k not in state], [k for k in state if k not in keys]
    problem = f"has no {missing[0]!r}" if missing else f"has {extra[0]!r}, which the net does not have"
    raise ConfigError(
        f"{name} {problem} ({len(missing)} missing and {len(extra)} extra; the net has {len(keys)}). Start from "
        f"{'rate_factors' if name == 'factors' else name}() of the FunctionalNet."
    )


def check_batch(name: str, images_BCHW: Tensor, labels_B: Tensor) -> None:
    """Raise DataError if a batch is empty, or has a different number of labels than of images."""
    if len(images_BCHW) == 0 or len(images_BCHW) != len(labels_B):
        raise DataError(
            f"The {name} batch has {len(images_BCHW)} images and {len(labels_B)} labels. Give at least one image, and "
            "one label for each."
        )


def no_path(module: nn.Module, count: int) -> ConfigError:
    """The error for a loss that autograd connects with none of the `count` parameters to adapt."""
    return ConfigError(
        f"Autograd finds no path from the logits of {type(module).__name__} to any of the {count} tensors to adapt. "
        "There is no gradient through torch.no_grad(), detach() or item(): remove these from the forward pass, or "
        "adapt other parts (inner.parts)."
    )


@contextmanager
def differentiating(module: nn.Module, *, second: Callable[[], bool]) -> Iterator[None]:
    """Turn any error of a backward pass into a ConfigError, since a layer may raise any class of error there.

    `second` is called after an error. It returns whether the model has a first derivative, so that only the second one
    is missing. Running out of memory, and a UserError, pass through.
    """
    try:
        yield
    except (torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:
        raise _no_derivative(module, error, second=second()) from error


def _no_derivative(module: nn.Module, error: Exception, *, second: bool) -> ConfigError:
    message = " ".join(str(error).split())[:300] or "without a message"
    raised = f"{type(error).__name__}: {message}"
    if second:
        return ConfigError(
            f"{type(module).__name__} has a first derivative in PyTorch, but no second one ({raised}). Set order: "
            "first (train.order in a run's settings), which does not need it, or replace the layer that raises this."
        )
    return ConfigError(
        f"PyTorch cannot differentiate {type(module).__name__} with torch.autograd.grad ({raised}), which every repair "
        "by gradient steps needs. Replace the layer that raises this, or use a method without gradients (bn_adapt)."
    )

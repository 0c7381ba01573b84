"""Arguments of the meta-gradient engine in, nothing out: a UserError for what cannot be meant."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tasks.errors import ConfigError, DataError, near_names

if TYPE_CHECKING:
    from metarepair.inner import FunctionalNet
    from metarepair.meta_gradient import OuterLoss, TaskBatch
    from metarepair.vectors import State


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


def check_task(net: FunctionalNet, task: TaskBatch, outer: OuterLoss, factors: State) -> None:
    """Raises ConfigError or DataError for what no gradient can be made of."""
    steps, weights = net.rule.steps, outer.step_weights
    for name, part in (("support", task.support), ("query", task.query), ("clean", task.clean)):
        if part is not None:
            check_batch(name, part.images_BCHW, part.labels_B)
    if outer.clean_weight > 0 and task.clean is None:
        raise DataError(
            f"clean_weight={outer.clean_weight}, and the task has no clean batch. Give it one, or 0."
        )
    if weights is not None and len(weights) != steps:
        raise ConfigError(
            f"step_weights has {len(weights)} weights for {steps} inner steps. Give one for each."
        )
    if not net.rule.learned_rates and not factors:
        return
    check_state("factors", factors, net.adapted)
    wrong = next((k for k, v in factors.items() if v.shape != (steps,)), None)
    if wrong is not None:
        shape = tuple(factors[wrong].shape)
        raise ConfigError(
            f"factors[{wrong!r}] has shape {shape}; it has one factor for each of {steps} steps."
        )


@contextmanager
def second_derivative_of(net: FunctionalNet) -> Iterator[None]:
    """Says in plain words that some layer can be derived but once."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"derivative for '?([\w:.]+)'? is not implemented", str(error))
        if found is None:
            raise
        raise ConfigError(
            f"{type(net.module).__name__} uses {found[1]}, and PyTorch has no derivative of that. Set order: first "
            "(train.order in a run's settings), or replace the layer that calls it."
        ) from error

"""Check the mean and standard deviation that a user gives for pixels in [0, 1].

The usual mistake is to give them for pixels in 0..255: the DNN then fails on every image, without any other error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tasks.errors import ConfigError

SMALLEST_STD = 0.99 / 255  # 1/255 feeds pixels in 0..255; users write it as 0.0039


def check_mean(name: str, values: Sequence[float]) -> None:
    """Raise ConfigError unless these can be channel means of pixels in [0, 1]; `name` is the setting's name."""
    if all(0 <= value <= 1 for value in values):
        return
    scaled = _scaled(values) if all(0 <= value <= 255 for value in values) else ""
    raise ConfigError(
        f"{name}={_listed(values)} is outside 0..1: mean and std are of pixels in [0, 1].{scaled}"
    )


def check_std(name: str, values: Sequence[float]) -> None:
    """Raise ConfigError unless these can be channel deviations of pixels in [0, 1]; `name` is the setting's name."""
    if all(SMALLEST_STD <= value <= 1 for value in values):
        return
    if not all(value > 0 for value in values):
        raise ConfigError(
            f"{name}={_listed(values)} must be above 0: it is the deviation of pixels in [0, 1]."
        )
    scaled = _scaled(values) if all(1 <= value <= 255 for value in values) else ""
    raise ConfigError(
        f"{name}={_listed(values)} is outside 1/255..1: mean and std are of pixels in [0, 1], where 1/255 feeds "
        f"the DNN pixels in 0..255.{scaled}"
    )


def _scaled(values: Sequence[float]) -> str:
    return f" If these are of pixels in 0..255, divide both by 255; this one is {_listed([v / 255 for v in values])}."


def _listed(values: Sequence[float]) -> str:
    numbers = (f"{value:.4g}" if math.isfinite(value) else str(value) for value in values)
    return f"[{', '.join(numbers)}]"

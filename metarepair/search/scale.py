"""Place the values of a dimension on an axis from 0 to 1, with the axis' ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from metarepair.search.space import Dimension, is_free

LONGEST = 16  # characters of a tick label


@dataclass(frozen=True, kw_only=True)
class Scale:
    """place: maps a value to its height, None if it has none. ticks: heights and labels, lowest first."""

    place: Callable[[Any], float | None]
    ticks: tuple[tuple[float, str], ...]
    log: bool = False


def scale_of(dimension: Dimension, drawn: Sequence[Any]) -> Scale:
    """Return an axis for a dimension: choices evenly spaced in order, ranges linear or logarithmic as drawn."""
    if dimension.kind == "choice":
        return _choices(dimension, drawn)
    return number_scale_of(dimension, drawn)


def number_scale_of(dimension: Dimension, drawn: Sequence[Any]) -> Scale:
    """Return an axis for a dimension of numbers; logarithmic for choices above 0 that span at least a decade."""
    numbers = [float(v) for v in (*dimension.values, *drawn) if v is not None]
    low, high = min(numbers), max(numbers)
    log = dimension.kind == "log_uniform" or (dimension.kind == "choice" and 0 < low <= high / 10)
    return number_scale(low, high, log=log, whole=dimension.kind == "integers")


def number_scale(
    low: float, high: float, *, log: bool = False, whole: bool = False, times: float = 1
) -> Scale:
    """Return an axis from low to high; `times` scales only the labels."""
    bend = math.log if log else float
    span = (bend(high) - bend(low)) or 1.0

    def place(value: Any) -> float | None:
        return None if value is None else (bend(float(value)) - bend(low)) / span

    inside = log_ticks(low, high) if log else _even_ticks(low * times, high * times, whole=whole)
    values = [v if log else v / times for v in inside]
    return Scale(
        place=place,
        ticks=tuple(((bend(v) - bend(low)) / span, number_words(v * times)) for v in values),
        log=log,
    )


def _choices(dimension: Dimension, drawn: Sequence[Any]) -> Scale:
    every: list[Any] = []
    for value in (*dimension.values, *drawn):
        every += [] if value in every else [value]
    if all(isinstance(v, int | float) for v in every):
        every.sort()
    height = 1 / (len(every) - 1) if len(every) > 1 else 0.0

    def place(value: Any) -> float | None:
        return every.index(value) * height if len(every) > 1 else 0.5

    return Scale(place=place, ticks=tuple((place(v) or 0.0, choice_words(v, dimension)) for v in every))


def _even_ticks(low: float, high: float, *, whole: bool) -> list[float]:
    ticks = MaxNLocator(nbins=5, integer=whole, steps=[1, 2, 5, 10]).tick_values(low, high)
    slack = 1e-9 * (high - low or 1.0)
    return [float(t) for t in ticks if low - slack <= t <= high + slack]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten as ticks, with 2 and 5 (or 3) times these if there are few; both ends if there are none."""
    for parts in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        ticks = np.asarray(LogLocator(subs=parts, numticks=20).tick_values(low, high))
        inside = [float(t) for t in ticks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]
        if len(inside) >= 3:
            return inside[:: math.ceil(len(inside) / 7)]
    return [low, high]


def choice_words(value: Any, dimension: Dimension) -> str:
    """Return the label of a choice on an axis or in a legend."""
    if is_free(dimension.name):
        return "taken" if value else "left"
    if isinstance(value, list | tuple):
        words = ", ".join(map(str, value))
    elif isinstance(value, float):
        words = number_words(value)
    else:
        words = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"


def number_words(value: float) -> str:
    """Return a number as text, such as `0.001`, `30` or `1e-05`, with a typographic minus sign."""
    return f"{value:.4g}".replace("-", "−")

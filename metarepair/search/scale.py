"""Place the values of a dimension on an axis from 0 to 1, with the axis' ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from metarepair.search.space import Dimension, is_free

LONGEST = 16  # letters of a tick


@dataclass(frozen=True, kw_only=True)
class Scale:
    """place: a value to its height, None for what has none. ticks: heights and words, lowest first."""

    place: Callable[[Any], float | None]
    ticks: tuple[tuple[float, str], ...]
    log: bool = False


def scale_of(dimension: Dimension, drawn: Sequence[Any]) -> Scale:
    """Choices evenly in order, ranges as they were drawn from: in the logarithm where that was even."""
    if dimension.kind == "choice":
        return _choices(dimension, drawn)
    return number_scale_of(dimension, drawn)


def number_scale_of(dimension: Dimension, drawn: Sequence[Any]) -> Scale:
    """A dimension of numbers to scale: of choices in the logarithm where they are above 0 and span a decade."""
    numbers = [float(v) for v in (*dimension.values, *drawn) if v is not None]
    low, high = min(numbers), max(numbers)
    log = dimension.kind == "log_uniform" or (dimension.kind == "choice" and 0 < low <= high / 10)
    return number_scale(low, high, log=log, whole=dimension.kind == "integers")


def number_scale(
    low: float, high: float, *, log: bool = False, whole: bool = False, times: float = 1
) -> Scale:
    """An axis from low to high; `times` scales the words alone."""
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
    """Powers of ten where there are some, with 2 and 5 between where there are few."""
    for parts in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        ticks = np.asarray(LogLocator(subs=parts, numticks=20).tick_values(low, high))
        inside = [float(t) for t in ticks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]
        if len(inside) >= 3:
            return inside[:: math.ceil(len(inside) / 7)]
    return [low, high]


def choice_words(value: Any, dimension: Dimension) -> str:
    """A choice on an axis or in a legend."""
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
    """`0.001`, `30`, `1e-05`, with a minus that is one."""
    return f"{value:.4g}".replace("-", "−")

"""Draw the trials of a search as PNG: parallel coordinates, the α × β map, the importance of settings."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation
from numpy.typing import NDArray

from metarepair.reports.figures import COLOURS
from metarepair.search.importance import BEST, Importance
from metarepair.search.scale import Scale, number_scale, number_scale_of, scale_of
from metarepair.search.space import FREE, Dimension, is_free
from metarepair.search.trials import Trial

Doubles = NDArray[np.float64]

ALPHA_BETA = ("experiences.alpha", "experiences.beta")
CMAP = "viridis"
BEST_COLOUR = COLOURS[5]
SPREAD = 0.05  # share of an axis over which trials with the same choice are spread
MANY = 9  # dimensions; from this number on, the axes are closer together
FEWEST_OF_A_SURFACE = 10  # different points that the α × β map needs to be interpolated


def parallel(
    shown: Sequence[Trial], dimensions: Sequence[Dimension], best: Trial | None, every: int
) -> bytes:
    """Draw a line for each trial of `shown` across all dimensions to its objective, which sets its colour.

    every: number of all trials, for the caption.
    """
    low, high = _limits(shown)
    scales = [scale_of(d, [t.drawn.get(d.name) for t in shown]) for d in dimensions]
    scales.append(number_scale(low, high, times=100))
    wide = 1.5 if len(dimensions) < MANY else 1.15
    x = np.concatenate([[0.0], np.cumsum([0.9 if is_free(d.name) else wide for d in dimensions])])
    figure = _figure(x[-1] + 2.8, 5.2)
    axes = figure.add_subplot()
    for place, scale in zip(x, scales, strict=True):
        _vertical(axes, float(place), scale)
    colour = colormaps[CMAP]
    for trial, y in _heights(shown, dimensions, scales):
        style: dict[str, Any] = {"linestyle": "-" if trial.state == "finished" else (0, (4, 2))}
        if trial == best:
            axes.plot(x, y, color="white", linewidth=5, zorder=4)
            style = {"color": BEST_COLOUR, "linewidth": 2.8, "marker": "o", "markersize": 5, "zorder": 5}
        else:
            share = ((trial.objective or 0.0) - low) / (high - low)
            style |= {"color": colour(share), "linewidth": 1.3, "alpha": 0.8}
        axes.plot(x, y, **style)
    axes.set_xticks(x, [*(_title(d.name) for d in dimensions), "objective,\n%"], fontsize=8.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.set(xlim=(-0.35, x[-1] + 0.75), ylim=(-0.06, 1.06))
    axes.spines[:].set_visible(False)
    axes.set_xlabel(_caption(shown, best, every), fontsize=8.5)
    return _png(figure)


def _heights(
    shown: Sequence[Trial], dimensions: Sequence[Dimension], scales: Sequence[Scale]
) -> Iterator[tuple[Trial, list[float]]]:
    """Yield each trial, worst first, with the heights of its line on the axes; for equal choices, better is higher."""
    order = sorted(shown, key=lambda t: t.objective or 0.0)
    apart = [*(SPREAD * (d.kind == "choice") for d in dimensions), 0.0]
    for rank, trial in enumerate(order):
        values = [*(trial.drawn.get(d.name) for d in dimensions), trial.objective]
        places = [scale.place(v) for scale, v in zip(scales, values, strict=True)]
        aside = rank / max(len(order) - 1, 1) - 0.5
        yield trial, [math.nan if p is None else p + aside * a for p, a in zip(places, apart, strict=True)]


def _vertical(axes: Axes, x: float, scale: Scale) -> None:
    axes.plot([x, x], [-0.03, 1.03], color="#555555", linewidth=1, zorder=3)
    for height, words in scale.ticks:
        axes.plot([x - 0.03, x + 0.03], [height, height], color="#555555", linewidth=1, zorder=3)
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
        axes.text(x + 0.06, height, _plain(words), fontsize=7.5, va="center", bbox=box, zorder=6)


def _caption(shown: Sequence[Trial], best: Trial | None, every: int) -> str:
    words = f"{len(shown)} of {every} trials, those with an objective"
    if best is not None:
        words += f"; thick: the best, {best.name} with {100 * (best.objective or 0):.1f} %"
    if any(t.state != "finished" for t in shown):
        words += "; dashed: not trained to the end"
    return _plain(words)


def alpha_beta(shown: Sequence[Trial], dimensions: Sequence[Dimension], best: Trial | None) -> bytes | None:
    """Draw the objective over α and β, interpolated if there are enough trials; None if α or β is not searched.

    Trials that use the default of α or β are left out.
    """
    both = [d for name in ALPHA_BETA for d in dimensions if d.name == name]
    placed = [t for t in shown if all(t.drawn.get(name) is not None for name in ALPHA_BETA)]
    if len(both) < 2 or not placed:
        return None
    scales = [number_scale_of(d, [t.drawn[d.name] for t in placed]) for d in both]
    points_N2 = np.array(
        [[s.place(t.drawn[d.name]) for d, s in zip(both, scales, strict=True)] for t in placed], np.float64
    )
    objectives_N = 100 * np.array([t.objective for t in placed], np.float64)
    figure = _figure(7.2, 5.4)
    axes = figure.add_subplot()
    low, high = _limits(shown)
    colour: dict[str, Any] = {"cmap": CMAP, "norm": Normalize(100 * low, 100 * high)}
    title = [f"{len(placed)} trials"]
    surface = _surface(points_N2, objectives_N)
    if surface is not None:
        axes.tripcolor(surface[0], surface[1], shading="gouraud", alpha=0.45, **colour)
        title[0] += ", interpolated between them"
    sizes = [60 if t.state == "finished" else 22 for t in placed]
    style: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.8, "zorder": 3, **colour}
    marks = axes.scatter(points_N2[:, 0], points_N2[:, 1], sizes, objectives_N, **style)
    if best in placed:
        x, y = points_N2[placed.index(best)]
        axes.plot(x, y, "*", markersize=20, color=BEST_COLOUR, markeredgecolor="white", zorder=4)
        title.append("star: the best")
    if any(t.state != "finished" for t in placed):
        title.append("small: not trained to the end")
    _map_axes(axes, scales)
    figure.colorbar(marks, ax=axes, label="objective, %")
    axes.set_title("; ".join(title), fontsize=9.5)
    return _png(figure)


def _map_axes(axes: Axes, scales: Sequence[Scale]) -> None:
    for axis, scale in zip((axes.xaxis, axes.yaxis), scales, strict=True):
        axis.set_ticks([height for height, _ in scale.ticks], [words for _, words in scale.ticks])
    axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    axes.set_xlabel("α, decay per unit of distance" + " (logarithmic)" * scales[0].log)
    axes.set_ylabel("β, threshold of the distance" + " (logarithmic)" * scales[1].log)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _surface(points_N2: Doubles, objectives_N: Doubles) -> tuple[Triangulation, Doubles] | None:
    """Triangulate the different points, with the mean objective at each; None if they are too few or on a line."""
    different, index = np.unique(points_N2, axis=0, return_inverse=True)
    if len(different) < FEWEST_OF_A_SURFACE:
        return None
    if np.linalg.matrix_rank(different - different.mean(axis=0), tol=1e-3) < 2:
        return None
    means = np.bincount(index.ravel(), objectives_N) / np.bincount(index.ravel())
    return Triangulation(different[:, 0], different[:, 1]), means


def importance_bars(found: Importance) -> bytes | None:
    """Draw a bar for each dimension; None if there is no importance to show."""
    if found.why_none is not None:
        return None
    figure = _figure(7, 1.5 + 0.34 * len(found.shares))
    axes = figure.add_subplot()
    values = [100 * share for share in found.shares.values()]
    bars = axes.barh(range(len(values)), values, color=COLOURS[3])
    axes.bar_label(bars, [f"{v:.0f} %" for v in values], padding=4, fontsize=8)
    axes.set_yticks(range(len(values)), [_plain(name) for name in found.shares], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.15)
    axes.set_xlabel(
        f"importance for being among the best {BEST:.0%} of {found.trials} trials, %  (PED-ANOVA)", fontsize=9
    )
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _limits(shown: Sequence[Trial]) -> tuple[float, float]:
    """Return the smallest and the largest objective, apart even if all are equal."""
    values = [t.objective for t in shown if t.objective is not None]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.005, high + 0.005)


def _title(name: str) -> str:
    """Return a dimension's name in short lines, for the top of its axis."""
    if is_free(name):
        return _plain(name.removeprefix(FREE)).replace("_", "\n")
    section, dot, key = name.partition(".")
    return _plain(f"{section}.\n{key}" if dot else name.replace(" ", "\n"))


def _plain(text: str) -> str:
    """Escape dollar signs, so that matplotlib does not read a user's text as a formula."""
    return text.replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()

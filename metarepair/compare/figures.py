"""Draw the figures of a comparison as PNG bytes: bars by target, and a radar chart over the corruptions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from metarepair.reports.figures import COLOURS, MARKS, blank, plain, quiet, to_png
from metarepair.reports.table import by_method, spread
from metarepair.reports.words import method_words
from tasks.corruptions import CORRUPTIONS

Result = Mapping[str, Any]
HATCHES = ("", "//", "..")  # tell apart methods that share a colour
PANELS = (("d_fail", "D_fail"), ("corrupted", "whole corrupted set"), ("clean", "clean"))


def bars(results: Sequence[Result]) -> bytes:
    """Accuracy on D_fail, the whole corrupted set and clean images by target and method (as the paper's Figs 2, 3).

    Error bars are the standard deviation over seeds.
    """
    methods = list(by_method(results[0]))
    figure = blank(max(9.0, 1.5 + 0.24 * len(methods) * len(results)), 9.5)
    axes_3 = figure.subplots(len(PANELS), 1, sharex=True)
    for axes, (key, words) in zip(axes_3, PANELS, strict=True):
        for number, method in enumerate(methods):
            _bars_of(axes, results, method, key, number, len(methods))
        axes.set_ylim(0, 100)
        axes.set_ylabel(f"{words}, %")
        quiet(axes)
    axes_3[-1].set_xticks(range(len(results)), [plain(r["target"].replace("_", " ")) for r in results])
    axes_3[0].set_title("Accuracy by target and method")
    handles, labels = axes_3[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    return to_png(figure)


def _bars_of(axes: Axes, results: Sequence[Result], method: str, key: str, number: int, count: int) -> None:
    width = 0.86 / count
    spreads = [spread(row.get(key) for row in by_method(r).get(method, ())) for r in results]
    x = [i - 0.43 + (number + 0.5) * width for i, s in enumerate(spreads) if s is not None]
    known = [s for s in spreads if s is not None]
    axes.bar(
        x,
        [100 * s.mean for s in known],
        width * 0.92,
        yerr=[100 * (s.sd or 0.0) for s in known],
        error_kw={"linewidth": 0.8},
        color=COLOURS[number % len(COLOURS)],
        hatch=HATCHES[number // len(COLOURS)],
        edgecolor="white" if number >= len(COLOURS) else "none",
        label=plain(method_words(method)),
    )


def radar(results: Sequence[Result]) -> bytes:
    """Accuracy on every corruption after a repair for each target: one panel per target, one line per method."""
    columns = min(2, len(results))
    lines = math.ceil(len(results) / columns)
    figure = blank(6.6 * columns, 5.6 * lines + 0.8)
    panels = np.ravel(figure.subplots(lines, columns, subplot_kw={"projection": "polar"}, squeeze=False))
    for axes in panels[len(results) :]:
        axes.set_axis_off()
    for axes, result in zip(panels, results, strict=False):
        _radar_of(axes, result)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return to_png(figure)


def _radar_of(axes: Axes, result: Result) -> None:
    target = result["target"]
    shown = {n for row in result["methods"] for n in row["other_corruptions"]} | {target}
    names = [*(n for n in CORRUPTIONS if n in shown), *sorted(shown - CORRUPTIONS.keys())]
    angles = np.linspace(0, 2 * math.pi, len(names), endpoint=False)
    for number, (method, rows) in enumerate(by_method(result).items()):
        values = []
        for name in names:
            accuracy = spread(
                row["corrupted"] if name == target else row["other_corruptions"].get(name) for row in rows
            )
            values.append(math.nan if accuracy is None else 100 * accuracy.mean)
        closed = [*values, values[0]]
        axes.plot(
            [*angles, angles[0]],
            closed,
            color=COLOURS[number % len(COLOURS)],
            linestyle=("-", "--", ":")[number // len(COLOURS)],
            marker=MARKS[number % len(MARKS)],
            markersize=3,
            linewidth=2.2 if method == "metarepair" else 1.0,
            label=plain(method_words(method)),
        )
    labels = [f"[{n}]" if n == target else n for n in names]
    axes.set_xticks(angles, [plain(label.replace("_", " ")) for label in labels], fontsize=7)
    axes.set_ylim(0, 100)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title(plain(f"repaired for {target.replace('_', ' ')}"), fontsize=10)

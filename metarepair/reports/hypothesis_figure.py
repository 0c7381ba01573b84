"""Draw a scatter plot of gain against distance for a study of the hypothesis, as PNG bytes."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from metarepair.evaluation.hypothesis import Floats, Study, different, relative_gains
from metarepair.reports.figures import COLOURS
from tasks.environments import category_of

# C corruptions (rows are experiences, columns targets), N pairs

PANELS = 5  # targets in a row
LOG_FROM = 10.0  # distances that span at least this factor get a logarithmic axis
PERCENT = 100


def scatter(study: Study, summary: dict[str, Any]) -> bytes:
    """Draw all pairs above, by gain and by gain minus the target's mean, and a small panel for each target below."""
    rows = math.ceil(len(study.names) / PANELS)
    figure = Figure(figsize=(12, 4.6 + 2.1 * rows), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    parts = figure.add_gridspec(2, 1, height_ratios=[4.6, 2.1 * rows])
    upper, lower = figure.add_subfigure(parts[0]), figure.add_subfigure(parts[1])
    left, right = upper.subplots(1, 2)
    gains_CC = different(study.gains_CC)
    found = summary["correlations"]
    _panel(left, study, PERCENT * gains_CC, f"all pairs, {_rho(found['all_pairs'])}")
    _panel(
        right,
        study,
        PERCENT * relative_gains(gains_CC),
        f"minus each target's mean, {_rho(found['less_target_means'])}",
    )
    left.set_ylabel("gain, % of the target's failures")
    right.set_ylabel("gain minus the target's mean, points")
    upper.supxlabel(summary["distance_name"], fontsize=9)
    upper.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    _target_panels(lower.subplots(rows, PANELS, squeeze=False, sharex=True, sharey=True), study, summary)
    lower.supylabel("gain, %", fontsize=9)
    lower.supxlabel(
        f"{summary['distance_name']}; star: training split of the same corruption, not in the correlations",
        fontsize=9,
    )
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _panel(axes: Axes, study: Study, values_CC: Floats, title: str) -> None:
    same_CC = _same_category(study)
    for same, words in ((False, "pairs of different categories"), (True, "pairs of the same category")):
        chosen_CC = (same_CC == same) & ~np.isnan(values_CC)
        _points(axes, study.distances_CC[chosen_CC], values_CC[chosen_CC], same=same, label=words)
    _axes(axes, study)
    axes.set_title(title, fontsize=10)


def _target_panels(grid: np.ndarray, study: Study, summary: dict[str, Any]) -> None:
    """Draw a panel for each target; leave the remaining panels blank."""
    same_CC = _same_category(study)
    for index, axes in enumerate(grid.flat):
        if index >= len(study.names):
            axes.set_axis_off()
            continue
        name = study.names[index]
        distances_C, gains_C = study.distances_CC[:, index], PERCENT * study.gains_CC[:, index]
        for same in (False, True):
            chosen_C = (same_CC[:, index] == same) & (np.arange(len(study.names)) != index)
            _points(axes, distances_C[chosen_C], gains_C[chosen_C], same=same)
        axes.plot(distances_C[index], gains_C[index], "*", color=COLOURS[3], markersize=8)
        _axes(axes, study)
        axes.set_title(
            f"{name.replace('_', ' ')}, {_rho(summary['targets'][name], interval=False)}", fontsize=8
        )
        axes.tick_params(labelsize=7, which="both", labelbottom=True)


def _points(axes: Axes, x_N: Floats, y_N: Floats, *, same: bool, label: str | None = None) -> None:
    mark = (
        {"marker": "^", "color": COLOURS[5]} if same else {"marker": "o", "color": COLOURS[2], "alpha": 0.7}
    )
    axes.plot(x_N, y_N, linestyle="none", markersize=4, label=label, **mark)


def _axes(axes: Axes, study: Study) -> None:
    """Set up the same kind of axes in every panel."""
    low, high = study.distances_CC.min(), study.distances_CC.max()
    if low > 0 and high / low >= LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def _same_category(study: Study) -> np.ndarray:
    categories = np.array([category_of(name) for name in study.names])
    return np.asarray(categories[:, None] == categories)


def _rho(found: dict[str, Any], *, interval: bool = True) -> str:
    if found["rho"] is None:
        return "ρ not defined"
    text = f"ρ {found['rho']:.2f}" + (f" ({found['low']:.2f} to {found['high']:.2f})" if interval else "")
    return text.replace("-", "−")

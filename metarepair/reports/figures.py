"""Draw the figures of a report as PNG or SVG bytes, without a display or global state.

The colours are Okabe and Ito's colour-blind-safe palette; marks and order carry the same information without colour.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metarepair.evaluation.calibration import Bin
from metarepair.reports.table import Result, Row, by_method, spread
from metarepair.reports.words import method_words
from tasks.records import Failures, Ints
from tasks.storage.paths import Place, writing

COLOURS = ("#999999", "#E69F00", "#56B4E9", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#000000")
MARKS = "osD^vPX*"
MOST_CLASSES = 30  # in a figure of the confusion
ANNOTATED = 20  # distances are written into the heat map for at most this many environments


def save(path: Place, png: bytes) -> None:
    """Save a picture; an existing file is only replaced by a complete one."""
    with writing(path) as part:
        part.write_bytes(png)


def blank(width: float, height: float) -> Figure:
    """Return an empty figure, with its size in inches, that needs no display."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    """Return the figure as PNG bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def to_svg(figure: Figure) -> bytes:
    """Return the figure as an SVG element, whose text is text. Equal figures give equal bytes."""
    stream = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "metarepair"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    return svg[svg.index(b"<svg") :]


def plain(text: str) -> str:
    """Escape `$`, so that matplotlib does not read text from outside as a formula."""
    return text.replace("$", r"\$")


def _name(text: str) -> str:
    return plain(text).replace("_", " ")


def _style_of(result: Result) -> dict[str, tuple[str, str]]:
    return {m: (COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]) for i, m in enumerate(by_method(result))}


def quiet(axes: Axes) -> None:
    """Keep two spines only, and add horizontal grid lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def calibration_curves(curves: Mapping[str, Sequence[Bin]], styles: Sequence[tuple[int, str]]) -> Figure:
    """Draw the share of right predictions by confidence; each curve has a name, a number of COLOURS and a mark."""
    figure = blank(5.2, 4.4)
    axes = figure.add_subplot()
    axes.plot([0, 100], [0, 100], color="#999999", linestyle="--", linewidth=1, label="perfect")
    for (name, bins), (colour, mark) in zip(curves.items(), styles, strict=True):
        axes.plot(
            [100 * one.confidence for one in bins],
            [100 * one.right for one in bins],
            color=COLOURS[colour],
            marker=mark,
            markersize=4,
            label=name,
        )
    axes.set_xlabel("confidence, %")
    axes.set_ylabel("right, %")
    axes.legend(frameon=False)
    quiet(axes)
    return figure


def heat_map(
    scores: Mapping[tuple[str, str], float],
    names: Sequence[str],
    category_of: Callable[[str], str],
    title: str,
    label: str,
) -> bytes:
    """Draw the distances between environments, grouped by category (paper Fig. 4).

    Distances are symmetric: a pair given in one order counts for both. Missing pairs are grey.
    """
    categories = list(dict.fromkeys(category_of(name) for name in names))
    ordered = sorted(names, key=lambda name: categories.index(category_of(name)))
    count = len(ordered)
    values = np.array(
        [[scores.get((a, b), scores.get((b, a), math.nan)) for b in ordered] for a in ordered], np.float64
    ).reshape(count, count)
    side = 3.4 + 0.42 * count
    figure = blank(side + 0.2, side)
    axes = figure.add_subplot()
    axes.set_facecolor("#cccccc")
    shown = axes.imshow(np.ma.masked_invalid(values), cmap="viridis_r")
    axes.set_xticks(range(count), [_name(n) for n in ordered], rotation=90, fontsize=8)
    axes.set_yticks(range(count), [_name(n) for n in ordered], fontsize=8)
    axes.set_title(plain(title), pad=26)
    figure.colorbar(shown, ax=axes, label=plain(label), shrink=0.75, pad=0.09)
    _mark_categories(axes, [category_of(name) for name in ordered])
    if count <= ANNOTATED:
        _annotate(axes, values)
    return to_png(figure)


def _mark_categories(axes: Axes, categories: Sequence[str]) -> None:
    """Draw lines between the categories, and write their names above and to the right."""
    for category in dict.fromkeys(categories):
        first, last = categories.index(category), len(categories) - 1 - categories[::-1].index(category)
        if first:
            axes.axhline(first - 0.5, color="white", linewidth=2.5)
            axes.axvline(first - 0.5, color="white", linewidth=2.5)
        middle, words = (first + last) / 2, _name(category)
        if last - first < 2:
            words = words.replace(" ", "\n")
        axes.text(middle, -0.75, words, ha="center", va="bottom", fontsize=8, style="italic")
        edge = len(categories) - 0.25
        axes.text(edge, middle, words, ha="left", va="center", rotation=270, fontsize=8, style="italic")


def _annotate(axes: Axes, values: np.ndarray) -> None:
    known = values[np.isfinite(values)]
    if not len(known):
        return
    low, high = float(known.min()), float(known.max())
    digits = max(0, 2 - math.floor(math.log10(high))) if high > 0 else 0
    digits = min(digits, 1) if high >= 10 else digits
    for (i, j), value in np.ndenumerate(values):
        if math.isfinite(value):
            dark = value > (low + high) / 2
            axes.text(
                j,
                i,
                f"{value:.{digits}f}",
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if dark else "black",
            )


def method_bars(result: Result, title: str) -> bytes:
    """Draw D_fail, whole corrupted set and clean accuracy by method, with error bars over seeds (as Figs. 2, 3)."""
    groups, styles = by_method(result), _style_of(result)
    keys = {"d_fail": "D_fail", "corrupted": "whole corrupted set", "clean": "clean"}
    figure = blank(9, 4.6)
    axes = figure.add_subplot()
    width = 0.84 / len(groups)
    for i, (method, rows) in enumerate(groups.items()):
        for j, key in enumerate(keys):
            found = spread(row.get(key) for row in rows)
            if found is None:
                continue
            x, height, error = j - 0.42 + (i + 0.5) * width, 100 * found.mean, 100 * (found.sd or 0.0)
            axes.bar(
                x,
                height,
                width * 0.94,
                color=styles[method][0],
                label=method_words(method) if not j else None,
            )
            if found.sd is not None:
                axes.errorbar(x, height, error, color="black", capsize=3, linewidth=1)
            axes.text(x, height + error + 1, f"{height:.1f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(keys)), list(keys.values()))
    axes.set_ylim(0, 108)
    axes.set_ylabel("accuracy, %")
    axes.set_title(plain(title))
    quiet(axes)
    figure.legend(loc="outside lower center", ncols=min(len(groups), 5), frameon=False)
    return to_svg(figure)


def training_curve(metrics: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Draw the query loss above, and below it the accuracies on the experiences' queries and target validation part."""
    figure = blank(8, 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True)
    curves = (
        (upper, "query_loss", 1, "query loss", COLOURS[3], "-"),
        (lower, "query_accuracy", 100, "query (experiences)", COLOURS[3], "-"),
        (lower, "validation_accuracy", 100, "validation (target)", COLOURS[5], "--"),
    )
    for axes, key, scale, label, colour, line in curves:
        points = [(m["episode"], scale * m[key]) for m in metrics if m.get(key) is not None]
        if points:
            x, y = zip(*points, strict=True)
            few = "o" if len(points) < 30 else ""
            axes.plot(x, y, color=colour, linestyle=line, marker=few, markersize=4, label=label)
    upper.set_ylabel("query loss")
    lower.set_ylabel("accuracy, %")
    lower.set_xlabel("episode of meta-training")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    if lower.lines:
        lower.legend(frameon=False)
    upper.set_title(plain(title))
    for axes in (upper, lower):
        quiet(axes)
    return to_svg(figure)


def severity_curve(result: Result, title: str) -> bytes:
    """Draw each method's accuracy on the corrupted set by severity, with error bars over seeds."""
    styles = _style_of(result)
    figure = blank(8, 4.4)
    axes = figure.add_subplot()
    severities = sorted({int(s) for row in result["methods"] for s in row["corrupted_by_severity"]})
    for method, rows in by_method(result).items():
        found = [spread(_at(row, s) for row in rows) for s in severities]
        points = [(s, f) for s, f in zip(severities, found, strict=True) if f is not None]
        axes.errorbar(
            [s for s, _ in points],
            [100 * f.mean for _, f in points],
            [100 * (f.sd or 0.0) for _, f in points],
            color=styles[method][0],
            marker=styles[method][1],
            capsize=3,
            label=method_words(method),
        )
    axes.set_xticks(severities)
    axes.set_xlabel("severity of the corruption")
    axes.set_ylabel("accuracy, %")
    axes.set_title(plain(title))
    quiet(axes)
    figure.legend(loc="outside lower center", ncols=min(len(styles), 5), frameon=False)
    return to_svg(figure)


def _at(row: Row, severity: int) -> float | None:
    value: float | None = row["corrupted_by_severity"].get(str(severity))
    return value


def examples(fail: Failures, after_N: Ints, classes: Sequence[str], title: str, each: int = 8) -> bytes:
    """Draw evenly spaced (not hand-picked) D_fail images: repaired ones above, those still wrong below.

    Images whose `after_N` is below 0 have no prediction and are not shown.
    """
    repaired_N = after_N == fail.labels_N
    blocks = ((True, "repaired"), (False, "still wrong"))
    figure = blank(1.45 * each + 0.6, 4.9)
    grid = figure.subplots(2, each, squeeze=False)
    figure.suptitle(plain(title))
    for line, (right, words) in enumerate(blocks):
        rows = np.flatnonzero((repaired_N == right) & (after_N >= 0))
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(each, len(rows))).astype(int))]
        for column, axes in enumerate(grid[line]):
            axes.set_axis_off()
            if column >= len(chosen):
                continue
            row = int(chosen[column])
            axes.imshow(fail.images_NHWC[row].squeeze(), cmap="gray")
            names = [_class(classes, v[row]) for v in (fail.labels_N, fail.predicted_N, after_N)]
            text = (
                f"true: {names[0]}\nbefore: {names[1]}\nafter: {names[2]}\nseverity {fail.severities_N[row]}"
            )
            axes.set_title(text, fontsize=7, loc="left")
        empty = "" if len(chosen) else ": none"
        grid[line][0].text(
            -0.12, 0.5, words + empty, rotation=90, va="center", ha="right", transform=grid[line][0].transAxes
        )
    return to_png(figure)


def _class(classes: Sequence[str], index: int) -> str:
    return _name(classes[index]) if 0 <= index < len(classes) else str(index)


def confidence_bars(experiences: Sequence[Mapping[str, Any]], title: str, label: str) -> bytes:
    """Draw each experience's probability, nearest on top, with its distance written at the bar."""
    nearest = sorted(experiences, key=lambda e: float(e["fid"]))
    figure = blank(8, 1.6 + 0.3 * len(nearest))
    axes = figure.add_subplot()
    values = [100 * float(e["p"]) for e in nearest]
    notes = [f"{p:.1f}%, distance {float(e['fid']):.4g}" for p, e in zip(values, nearest, strict=True)]
    bars = axes.barh(range(len(nearest)), values, color=COLOURS[3])
    axes.bar_label(bars, notes, padding=4, fontsize=8)
    axes.set_yticks(range(len(nearest)), [_name(str(e["name"])) for e in nearest])
    axes.invert_yaxis()
    axes.set_xlim(0, max([*values, 1e-9]) * 1.4)
    axes.set_xlabel(f"confidence, %  (nearest first by {plain(label)})", fontsize=9)
    axes.set_title(plain(title))
    axes.spines[["top", "right"]].set_visible(False)
    return to_svg(figure)

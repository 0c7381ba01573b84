"""Draw side effects as SVG: confidence against accuracy, and the confusion before, after and its change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from metarepair.reports.figures import COLOURS, blank, plain, quiet, to_svg

# K classes

MOST_CLASSES = 30  # in a figure of the confusion


def reliability(calibration: Mapping[str, Any], title: str) -> bytes:
    """Draw the share of right predictions by confidence, before and after a repair."""
    figure = blank(5.2, 4.2)
    axes = figure.add_subplot()
    axes.plot([0, 100], [0, 100], color="#999999", linestyle="--", linewidth=1, label="perfect")
    for when, colour, mark in (("before", 0, "o"), ("after", 3, "s")):
        bins = calibration[when]["bins"]
        axes.plot(
            [100 * one["confidence"] for one in bins],
            [100 * one["right"] for one in bins],
            color=COLOURS[colour],
            marker=mark,
            markersize=4,
            label=when,
        )
    axes.set_xlabel("confidence, %")
    axes.set_ylabel("right, %")
    axes.set_title(plain(title), fontsize=10)
    axes.legend(frameon=False)
    quiet(axes)
    return to_svg(figure)


def confusion(confusion_2KK: NDArray[np.int64], names: Sequence[str], title: str) -> bytes:
    """Draw which label (row) is predicted as which class (column), before and after, and the change in images."""
    shares = confusion_2KK / np.maximum(confusion_2KK.sum(2, keepdims=True), 1)
    change_KK = confusion_2KK[1] - confusion_2KK[0]
    most = max(int(np.abs(change_KK).max()), 1)
    figure = blank(3 * (1.6 + 0.26 * len(names)), 2.0 + 0.26 * len(names))
    before, after, change = figure.subplots(1, 3)
    for number, (axes, when) in enumerate(((before, "before"), (after, "after"))):
        axes.imshow(shares[number], cmap="Blues", vmin=0, vmax=1)
        _cells(axes, confusion_2KK[number], shares[number] > 0.5, "{}")
        _labelled(axes, names, when)
    change.imshow(change_KK, cmap="PuOr", vmin=-most, vmax=most)
    _cells(change, change_KK, np.abs(change_KK) > most / 2, "{:+}")
    _labelled(change, names, "change")
    figure.suptitle(plain(title), fontsize=10)
    return to_svg(figure)


def _labelled(axes: Axes, names: Sequence[str], title: str) -> None:
    shown = [plain(name) for name in names]
    axes.set_xticks(range(len(shown)), shown, rotation=90, fontsize=7)
    axes.set_yticks(range(len(shown)), shown, fontsize=7)
    axes.set_xlabel("predicted", fontsize=8)
    axes.set_ylabel("label", fontsize=8)
    axes.set_title(title, fontsize=9)


def _cells(axes: Axes, counts_KK: NDArray[np.int64], dark_KK: NDArray[np.bool_], form: str) -> None:
    for (i, j), count in np.ndenumerate(counts_KK):
        if count:
            colour = "white" if dark_KK[i, j] else "black"
            axes.text(j, i, form.format(int(count)), ha="center", va="center", fontsize=6, color=colour)

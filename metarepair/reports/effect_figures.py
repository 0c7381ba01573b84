"""Draw side effects as SVG: confidence against accuracy, and the confusion before, after and its change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from metarepair.evaluation.calibration import Bin
from metarepair.reports.figures import blank, calibration_curves, plain, to_svg

# K classes


def reliability(calibration: Mapping[str, Any], title: str) -> bytes:
    """Draw the share of right predictions by confidence, before and after a repair."""
    curves = {when: [Bin(**one) for one in calibration[when]["bins"]] for when in ("before", "after")}
    figure = calibration_curves(curves, [(0, "o"), (3, "s")])
    figure.axes[0].set_title(plain(title), fontsize=10)
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

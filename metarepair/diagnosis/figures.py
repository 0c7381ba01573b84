"""Draw the figures of a diagnosis: confusion, calibration, distances, and the sheet of suspicious labels."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from metarepair.diagnosis.findings import SuspiciousLabel
from metarepair.diagnosis.known import Nearest
from metarepair.evaluation.calibration import Bin
from metarepair.reports.figures import COLOURS, blank, calibration_curves, plain, to_png
from metarepair.reports.image_rows import COLUMNS, SheetRow, draw
from tasks.records import Pixels

# K classes


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> bytes:
    """Draw how many images of each class (row) are taken for which (column), as shares of the row."""
    counts_KK: NDArray[np.int64] = np.asarray(confusion)
    shares_KK = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    side = 2.4 + 0.42 * len(classes)
    figure = blank(side + 0.8, side)
    axes = figure.add_subplot()
    shown = axes.imshow(100 * shares_KK, cmap="Blues", vmin=0, vmax=100)
    names = [plain(name) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    for (i, j), count in np.ndenumerate(counts_KK):
        if count:
            dark = shares_KK[i, j] > 0.5
            axes.text(
                j, i, str(count), ha="center", va="center", fontsize=7, color="white" if dark else "black"
            )
    figure.colorbar(shown, ax=axes, label="% of the label's images", shrink=0.75)
    return to_png(figure)


def calibration_figure(photographs: Sequence[Bin], clean: Sequence[Bin]) -> bytes:
    """Draw the share of right predictions by confidence, on the photographs and on clean images."""
    curves = {"photographs": photographs, "clean images": clean}
    return to_png(calibration_curves(curves, [(5, "o"), (3, "s")]))


def nearest_figure(nearest: Nearest, label: str) -> bytes:
    """Draw the distance of each known environment, nearest on top, with its interval if there is one."""
    figure = blank(8, 1.4 + 0.28 * len(nearest.found))
    axes = figure.add_subplot()
    places = range(len(nearest.found))
    axes.barh(places, [one.distance for one in nearest.found], color=COLOURS[2])
    for place, one in zip(places, nearest.found, strict=True):
        if one.low is not None and one.high is not None:
            axes.plot([one.low, one.high], [place, place], color="black", linewidth=1)
    axes.set_yticks(places, [plain(one.name).replace("_", " ") for one in nearest.found])
    axes.invert_yaxis()
    axes.set_xlabel(plain(label), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return to_png(figure)


def label_sheet(labels: Sequence[SuspiciousLabel], images: Sequence[Pixels]) -> bytes:
    """Draw photographs in the order of the ranking, each with its label and the class that it looks like."""
    rows = []
    for start in range(0, len(labels), COLUMNS):
        shown = labels[start : start + COLUMNS]
        rows.append(
            SheetRow(
                name=f"{start + 1} to {start + len(shown)}",
                note="label -> looks like",
                images=images[start : start + COLUMNS],
                captions=[(one.label, f"-> {one.suggested}{' !' if one.doubted else ''}") for one in shown],
            )
        )
    stream = io.BytesIO()
    draw(rows).save(stream, format="PNG")
    return stream.getvalue()

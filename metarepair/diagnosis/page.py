"""Write the files of a diagnosis: index.html, which opens offline, diagnosis.json, a table of labels and a sheet."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa
from markupsafe import Markup

from metarepair.diagnosis.figures import (
    calibration_figure,
    confusion_figure,
    label_sheet,
    nearest_figure,
)
from metarepair.diagnosis.findings import (
    Diagnosis,
    SuspiciousLabel,
    labels_words,
    nearest_words,
    norms_words,
    percent,
    sentences,
)
from metarepair.diagnosis.measures import Share
from metarepair.reports.figures import MOST_CLASSES
from metarepair.reports.page import bullets, heading, html_page, html_table, paragraph, picture
from tasks.records import Pixels
from tasks.storage.paths import Place, write_table, write_text

PAGE, RECORD, LABELS, SHEET = "index.html", "diagnosis.json", "suspicious_labels.csv", "suspicious_labels.png"
LISTED = 20  # labels in the table of the page
SHOWN = 50  # labels on the sheet


def write_diagnosis(folder: Place, found: Diagnosis, images: Sequence[Pixels] | None) -> Place:
    """Write all files, the page last, and return the page. images: those of the first labels; None shows none."""
    write_text(folder / RECORD, json.dumps(found.record(), indent=1))
    if found.labels:
        write_table(folder / LABELS, _label_table(found.labels))
    if not images:
        (folder / SHEET).unlink(missing_ok=True)  # of an earlier diagnosis
    parts = (
        bullets(sentences(found), "verdict"),
        _photographs(folder, found),
        heading("Batch norm alone", 2),
        paragraph(norms_words(found.norms)),
        _nearest(folder, found),
        _labels(folder, found, images),
        _files(found),
    )
    write_text(folder / PAGE, html_page(f"Diagnosis of {found.model} on {found.environment}", *parts))
    return folder / PAGE


def _label_table(labels: Sequence[SuspiciousLabel]) -> pa.Table:
    names = list(SuspiciousLabel.__annotations__)
    columns = {name: [getattr(one, name) for one in labels] for name in names}
    return pa.table({"rank": list(range(1, len(labels) + 1))} | columns)


def _photographs(folder: Place, found: Diagnosis) -> Markup:
    photographs, names = found.photographs, found.classes
    page = heading("Photographs", 2)
    if not found.only_failures:
        clean = {one.name: one.recall for one in found.clean.classes}
        rows = [[one.name, *_cells(one.recall), _brief(clean.get(one.name))] for one in photographs.classes]
        page += html_table(["class, the worst first", "right %", "images", "95% interval", "clean %"], rows)
    if len(names) <= MOST_CLASSES:
        png = confusion_figure(photographs.confusion, names)
        page += picture(folder, "confusion.png", png, "Images by label (rows) and predicted class (columns).")
    else:
        pairs = [[one.label, one.predicted, one.images] for one in photographs.confused]
        page += html_table(["label", "predicted", "images"], pairs)
    if not found.only_failures:
        png = calibration_figure(photographs.calibration.bins, found.clean.calibration.bins)
        page += picture(folder, "calibration.png", png, "Share of right predictions by confidence.")
    return page


def _cells(share: Share) -> list[object]:
    return [percent(share.share), share.images, f"{percent(share.low)} to {percent(share.high)}"]


def _brief(share: Share | None) -> str:
    return "—" if share is None else f"{percent(share.share)} of {share.images}"


def _nearest(folder: Place, found: Diagnosis) -> Markup:
    nearest = found.nearest
    page = heading("Nearest known environments", 2) + paragraph(nearest_words(nearest))
    if nearest.found:
        rows = [
            [
                one.name,
                one.category,
                f"{one.distance:.4g}",
                "—" if one.low is None or one.high is None else f"{one.low:.4g} to {one.high:.4g}",
                one.failures,
            ]
            for one in nearest.found
        ]
        header = ["environment", "category", "distance", "95% interval", "failures"]
        page += html_table(header, rows)
        page += picture(folder, "nearest.png", nearest_figure(nearest, found.distance), f"{found.distance}.")
    few = [f"{name} ({count})" for name, count in nearest.too_few.items()]
    if few:
        page += paragraph(f"Too few failures for a distance: {', '.join(few)}. The DNN is robust to these.")
    made = (
        f"{nearest.images} clean images were corrupted; "
        if nearest.images
        else "The kit's moments were used; "
    )
    return page + paragraph(
        f"{made}{nearest.failures} failures of the photographs are compared. The smaller the distance, the more alike."
    )


def _labels(folder: Place, found: Diagnosis, images: Sequence[Pixels] | None) -> Markup:
    page = heading("Suspicious labels", 2) + paragraph(labels_words(found))
    if not found.labels:
        return page
    rows = [
        [
            number,
            *([] if one.file is None else [one.file]),
            one.label,
            one.predicted,
            one.suggested,
            percent(one.confidence),
            percent(one.neighbours),
            "yes" if one.doubted else "",
        ]
        for number, one in enumerate(found.labels[:LISTED], 1)
    ]
    named = [] if found.labels[0].file is None else ["file"]
    header = ["", *named, "label", "predicted", "looks like", "confidence", "other neighbours", "doubted"]
    page += html_table(header, rows)
    page += paragraph(
        "Confidence: probability of the label, by a linear head on the DNN's features that was fitted to other "
        "photographs and clean images. Other neighbours: share of the 20 nearest images with another label. Doubted: "
        "confident learning takes the label for wrong, and at least nine in ten neighbours have another. A hard "
        f"photograph with a right label is suspicious, too: look before you correct. All: {LABELS}."
    )
    if not images:
        return page
    png = label_sheet(found.labels[: len(images)], images)
    return page + picture(
        folder, SHEET, png, "The most suspicious labels; ! marks those that both measures doubt."
    )


def _files(found: Diagnosis) -> Markup:
    lines = [f"{RECORD}: everything on this page", f"{LABELS}: all failures, the most suspicious label first"]
    took = paragraph(f"The diagnosis took {found.seconds:.0f} s.")
    return heading("Files", 2) + bullets(lines, "small") + took

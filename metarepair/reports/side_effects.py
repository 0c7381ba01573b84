"""Tell in a report what the repair that it recommends changed: classes, confusion, confidence and single images."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from metarepair.evaluation.side_effects import CLEAN
from metarepair.reports.effect_figures import confusion, reliability
from metarepair.reports.examples import SourceOf
from metarepair.reports.figures import MOST_CLASSES
from metarepair.reports.image_rows import COLUMNS, SheetRow, draw
from metarepair.reports.page import (
    bullets,
    details,
    file_name,
    heading,
    html_table,
    joined,
    paragraph,
    picture,
)
from metarepair.reports.table import Result, Row, shown_row, target_of
from metarepair.reports.words import method_words, percent, plain_words, points, set_words, signed
from metarepair.runs.layout import Run
from tasks.datasets import ArrayDataset
from tasks.experiences.pixels import rows_of_images
from tasks.records import Pixels
from tasks.storage.paths import read_json, read_table, write_table

# K classes

SHOWN_CLASSES, SHOWN_PAIRS = 20, 12  # rows of a table on the page
KIND_HEADER = ("of these", "images", "accuracy %", "change")
CLASS_HEADER = ("class", "images", "recall %", "change", "precision %", "became right", "became wrong", "p")
OLDER = "Side effects are not recorded: the repair was made by an older version."
BECAME_RIGHT, BECAME_WRONG = "became right", "became wrong"
REPAIR_AGAIN = "Repair again: metarepair repair --config FILE --restart."
Effects = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Images:
    """Where the report finds images that judged: environments by the target's name, and the clean test split."""

    environment: SourceOf
    clean: Callable[[], ArrayDataset]


@dataclass(frozen=True, kw_only=True)
class ShownEffects:
    """The side effects of one repair: its row of the result, its key METHOD/SEED, and what changed by set of images."""

    row: Row
    key: str
    by_set: Mapping[str, Effects]
    class_names: Sequence[str]


def shown_effects(run: Run, result: Result) -> ShownEffects | None:
    """The side effects of the repair that a report tells of; None if there is none, or an older version made it."""
    row, path = shown_row(result), run.repaired(target_of(result)) / "side_effects.json"
    if row is None or not path.is_file():
        return None
    told, key = read_json(path), f"{row['method']}/{row['seed']}"
    return ShownEffects(row=row, key=key, by_set=told["repairs"][key], class_names=told["class_names"])


def side_effects_section(run: Run, result: Result, images: Images | None) -> Markup:
    """Return the section of a report, and write its files beside the page.

    images: where pictures come from; None shows none, and leaves the names of files out.
    """
    if shown_row(result) is None:
        return Markup("")
    shown, target = shown_effects(run, result), target_of(result)
    if shown is None:
        return heading("Side effects") + paragraph(OLDER)
    words = {name: set_words(name, target) for name in shown.by_set}
    return joined(
        [
            heading(f"Side effects: {method_words(shown.row['method'])}, seed {shown.row['seed']}"),
            bullets(effect_words(words[name], found) for name, found in shown.by_set.items()),
            *(
                _of_one_set(run, found, words[name], f"{file_name(target)}_{name}", shown.class_names)
                for name, found in shown.by_set.items()
            ),
            _single_images(run, target, shown.key, images, shown.class_names),
        ]
    )


def effect_words(words: str, found: Effects) -> str:
    """Return a sentence on what a repair changed on a set of images, which `words` name."""
    return (
        f"{words}: of {found['images']:,} images, {found['fixed']:,} became right and {found['broken']:,} wrong: "
        f"{percent(found['before'])}% → {percent(found['after'])}%, {points(found['gain'])} (95% interval "
        f"{signed(100 * found['low'])} to {signed(100 * found['high'])}; McNemar's test p = {found['p']:.2g}). "
        f"Expected calibration error {percent(found['calibration']['before']['error'])}% → "
        f"{percent(found['calibration']['after']['error'])}%."
    )


def _of_one_set(run: Run, found: Effects, words: str, name: str, class_names: Sequence[str]) -> Markup:
    classes = found["classes"]
    write_table(run.report / f"{name}_classes.csv", pa.Table.from_pylist(classes))
    first = (
        f"the {SHOWN_CLASSES} worst changes of {len(classes)}; all: " if len(classes) > SHOWN_CLASSES else ""
    )
    parts = [
        paragraph(f"Each class, the worst change of recall first ({first}{name}_classes.csv)."),
        html_table(CLASS_HEADER, map(_class_cells, classes[:SHOWN_CLASSES])),
        *_confused(run, found, words, f"{name}_confusion.svg", class_names),
        picture(
            run.report,
            f"{name}_calibration.svg",
            reliability(found["calibration"], words),
            f"Share of right predictions by confidence, before and after: {words}.",
        ),
    ]
    if found["kinds"]:
        parts.append(html_table(KIND_HEADER, map(_kind_cells, found["kinds"])))
    return details(f"{words}: classes, confusion, calibration", parts)


def _confused(
    run: Run, found: Effects, words: str, name: str, class_names: Sequence[str]
) -> Iterator[Markup]:
    """The pairs of classes that changed most, and for few classes a figure of all pairs."""
    wrong = [cell for cell in found["confusion"] if cell[0] != cell[1] and cell[2] != cell[3]]
    wrong.sort(key=lambda cell: (-abs(cell[3] - cell[2]), cell))
    if wrong:
        yield paragraph("Mistakes whose number changed most:")
        rows = [
            [class_names[label], class_names[predicted], f"{before:,} → {after:,}", f"{after - before:+,}"]
            for label, predicted, before, after in wrong[:SHOWN_PAIRS]
        ]
        yield html_table(["label", "predicted", "images", "change"], rows)
    if len(class_names) <= MOST_CLASSES:
        confusion_2KK = np.zeros((2, len(class_names), len(class_names)), np.int64)
        for label, predicted, before, after in found["confusion"]:
            confusion_2KK[:, label, predicted] = before, after
        caption = (
            f"Images by label (rows) and predicted class (columns), before, after, and the change: {words}."
        )
        yield picture(run.report, name, confusion(confusion_2KK, class_names, words), caption)


def _kind_cells(one: Mapping[str, Any]) -> list[str]:
    change = points(one["after"] - one["before"])
    return [one["name"], f"{one['images']:,}", _before_after(one["before"], one["after"]), change]


def _class_cells(one: Mapping[str, Any]) -> list[str]:
    return [
        one["name"],
        f"{one['images']:,}",
        _before_after(one["recall_before"], one["recall_after"]),
        points(one["recall_after"] - one["recall_before"]),
        _before_after(one["precision_before"], one["precision_after"]),
        f"{one['fixed']:,}",
        f"{one['broken']:,}",
        f"{one['p']:.2g}",
    ]


def _before_after(before: float | None, after: float | None) -> str:
    return " → ".join("—" if one is None else percent(one) for one in (before, after))


def _single_images(
    run: Run, target: str, key: str, images: Images | None, class_names: Sequence[str]
) -> Markup:
    """Write the table of images that became right or wrong; show some of clean images and of the target's."""
    table = read_table(run.repaired(target) / "judged_images.parquet", REPAIR_AGAIN)
    changed = _changed(table, key, class_names)
    name = file_name(target)
    write_table(run.report / f"{name}_changed.csv", changed if images else changed.drop_columns(["file"]))
    page = paragraph(
        f"All {changed.num_rows:,} images that became right or wrong, with both predictions and confidences: "
        f"{name}_changed.csv."
    )
    rows = [] if images is None else _sheet_rows(changed, images, target)
    if not rows:
        return page
    stream = io.BytesIO()
    draw(rows).save(stream, format="PNG")
    caption = "Images that became wrong and right, evenly spaced: label, and predicted class before → after."
    return page + picture(run.report, f"{name}_changed.png", stream.getvalue(), caption)


def _changed(table: pa.Table, key: str, class_names: Sequence[str]) -> pa.Table:
    """The images that were right before or after the repair, and not both."""
    label, before, after = (table.column(name).to_numpy() for name in ("label", "before", key))
    rows = np.flatnonzero((before == label) != (after == label))
    found = table.take(rows)
    names = np.array(class_names, dtype=object)
    return pa.table(
        {
            "change": np.where(after[rows] == label[rows], BECAME_RIGHT, BECAME_WRONG),
            **{name: found.column(name) for name in ("environment", "image_id", "severity", "kind", "file")},
            "label": names[label[rows]],
            "before": names[before[rows]],
            "after": names[after[rows]],
            "confidence_before": found.column("before confidence"),
            "confidence_after": found.column(f"{key} confidence"),
        }
    )


def _sheet_rows(changed: pa.Table, images: Images, target: str) -> list[SheetRow]:
    rows = []
    for environment, words in ((target, plain_words(target)), (CLEAN, "clean")):
        for change in (BECAME_WRONG, BECAME_RIGHT):
            found = changed.filter((pc.field("environment") == environment) & (pc.field("change") == change))
            if not found.num_rows:
                continue
            shown = found.take(np.unique(np.linspace(0, found.num_rows - 1, COLUMNS).astype(int))).to_pylist()
            rows.append(
                SheetRow(
                    name=words,
                    note=f"{change}: {found.num_rows:,}",
                    images=_pixels(images, environment, shown),
                    captions=[(one["label"], f"{one['before']} -> {one['after']}") for one in shown],
                )
            )
    return rows


def _pixels(images: Images, environment: str, shown: Sequence[Mapping[str, Any]]) -> list[Pixels]:
    ids = np.array([one["image_id"] for one in shown])
    if environment == CLEAN:
        return list(images.clean().images(ids))
    source = images.environment(environment)
    rows = rows_of_images(source.image_ids_N, ids)
    return [source.images(rows[[n]], int(one["severity"]))[0] for n, one in enumerate(shown)]

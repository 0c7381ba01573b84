"""Draw a contact sheet of collected failures, each with its label and the DNN's prediction.

The sheet has a row for each environment of a run, or for each severity of one environment. Its images are evenly
spaced in D_collect, not hand-picked. D_fail is not opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from metarepair.inspection.facts import BAD, EnvironmentFacts, Inspection, LoneFile, StageFacts
from metarepair.reports.contact_sheet import check_ending, save_sheet
from metarepair.reports.image_rows import COLUMNS, SheetRow, draw
from tasks.datasets import load_dataset, source_from
from tasks.environments import Environment, corrupted
from tasks.errors import ConfigError, DataError
from tasks.experiences.failure_file import read_failures
from tasks.experiences.pixels import RecomputedPixels
from tasks.records import Failures, Ints
from tasks.storage.paths import Place, place


def write_sheet(inspection: Inspection, out: Path) -> None:
    """Draw the collected failures. Raises DataError if there are none or their pixels cannot be made."""
    check_ending(out, "--sheet")
    if out.resolve() in _own_files(inspection):
        raise ConfigError(f"--sheet {out} is one of the inspected files; name another file for the sheet")
    rows = sheet_rows(inspection)
    if not any(row.images for row in rows):
        raise DataError(
            f"{inspection.path} has no collected failures to draw: --sheet needs a run, an environment "
            "(experiences/ENVIRONMENT, targets/ENVIRONMENT) or its collect.arrow, fully mined and undamaged."
        )
    save_sheet(draw(rows), out, "--sheet")


def sheet_rows(inspection: Inspection) -> list[SheetRow]:
    """Return a row for each environment, or for each severity if there is only one environment."""
    root = place(inspection.path)
    if inspection.file is not None:
        return _lone_rows(inspection.file, root)
    stages = [stage for stage in inspection.stages if stage.kind == "environment" and stage.finished]
    if len(inspection.stages) == 1 and stages:
        failures = _collected(stages[0], root)
        return [] if failures is None else _by_severity(failures, _class_names(stages[0]))
    return [_environment_row(stage, _collected(stage, root)) for stage in stages]


def _lone_rows(file: LoneFile, path: Place) -> list[SheetRow]:
    if file.name != "collect.arrow" or file.state in BAD:
        return []
    failures = read_failures(path)
    if isinstance(failures.images_NHWC, RecomputedPixels):
        raise DataError(
            f"{path} stores no pixels (mining.pixels: recomputed); the manifest in its folder names the data set that "
            f"they are made from. Inspect the folder: metarepair inspect {path.parent} --sheet FILE"
        )
    return _by_severity(failures, tuple(file.collected_per_class))


def _collected(stage: StageFacts, root: Place) -> Failures | None:
    """Return D_collect with its pixels; None if it is missing or damaged."""
    if not any(file.name == "collect.arrow" and file.state == "ok" for file in stage.files):
        return None
    folder = root if stage.path == "." else root / stage.path
    failures = read_failures(folder / "collect.arrow")
    images = failures.images_NHWC
    if isinstance(images, RecomputedPixels):
        return replace(failures, images_NHWC=images.read_from(_environment(stage, images.seed)))
    return failures


def _environment(stage: StageFacts, seed: int) -> Environment:
    """The corrupted split that was mined, from METAREPAIR_DATA or the shipped sample."""
    data, archived = stage.config.get("data"), stage.role == "target" and "archive" in stage.inputs
    if not isinstance(data, dict) or archived or "environment" in stage.config:
        raise DataError(
            f"{stage.path} stores no pixels (mining.pixels: recomputed), and they cannot be made for --sheet: its "
            "images came from a published archive or from files of yours, or its manifest names no data set. "
            "Inspect another environment."
        )
    clean = load_dataset(source_from(data), "train" if stage.role == "experience" else "test")
    table = replace(clean, corruption_table=data.get("corruption_table"))
    return corrupted(table, str(stage.name), severities=(), seed=seed)


def _environment_row(stage: StageFacts, failures: Failures | None) -> SheetRow:
    if failures is None:
        return SheetRow(name=stage.path, note="D_collect is damaged", images=(), captions=())
    rows = evenly_spaced(np.arange(len(failures)))
    classes = _class_names(stage)
    captions = [
        (first, f"{second}, s{failures.severities_N[row]}")
        for row, (first, second) in zip(rows, _captions(failures, rows, classes), strict=True)
    ]
    in_seed = f", {stage.seed_run}" if stage.seed_run else ""
    return SheetRow(
        name=stage.name or failures.corruption,
        note=f"{stage.role or 'environment'}, {len(failures)} collected{in_seed}",
        images=list(failures.images_NHWC[rows]),
        captions=captions,
    )


def _class_names(stage: StageFacts) -> tuple[str, ...]:
    facts = stage.details
    return (
        tuple(facts.collected_per_class)
        if isinstance(facts, EnvironmentFacts) and facts.classes_named
        else ()
    )


def _by_severity(failures: Failures, classes: Sequence[str]) -> list[SheetRow]:
    result = []
    for severity in np.unique(failures.severities_N):
        members = np.flatnonzero(failures.severities_N == severity)
        rows = evenly_spaced(members)
        result.append(
            SheetRow(
                name=f"severity {severity}",
                note=f"{failures.corruption}, {len(members)} collected",
                images=list(failures.images_NHWC[rows]),
                captions=_captions(failures, rows, classes),
            )
        )
    return result


def evenly_spaced(rows_N: Ints) -> Ints:
    """Return evenly spaced rows, from the first to the last, at most as many as the sheet has columns."""
    if not len(rows_N):
        return rows_N
    places = np.linspace(0, len(rows_N) - 1, min(COLUMNS, len(rows_N))).round().astype(np.int64)
    chosen: Ints = rows_N[places]
    return chosen


def _captions(failures: Failures, rows: Ints, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Return the label and the prediction of each row. The font has no arrow character."""

    def name(index: int) -> str:
        return classes[index] if 0 <= index < len(classes) else f"class {index}"

    return [(name(failures.labels_N[row]), f"-> {name(failures.predicted_N[row])}") for row in rows]


def _own_files(inspection: Inspection) -> set[Path]:
    root = Path(inspection.path)
    return {(root / stage.path / file.name).resolve() for stage in inspection.stages for file in stage.files}

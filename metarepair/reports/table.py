"""Format a target's result.json as a table with a legend and a verdict; write all rows as CSV and Parquet.

Accuracies are fractions in result.json and percent here. docs/protocol.md defines the columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from metarepair.evaluation.bounds import share_interval
from metarepair.reports.outcome import (
    FEW_IMAGES,
    knows_only_failures,
    lost_words,
    named,
    outcome_of,
    taken_inside,
)
from metarepair.reports.words import method_words, percent, points
from tasks.storage.paths import Place, write_table

Row = Mapping[str, Any]
Result = Mapping[str, Any]

CLEAN_HELD_POINTS = 1.0  # clean accuracy counts as maintained if at most this much is lost
LEGEND = (
    "D_fail: accuracy on the failures that no method learned from. D_fail holds only failures, so its accuracy is 0 "
    "before repair; read it together with the other columns.",
    "corrupted: accuracy in the target's environment, on right and wrong images alike; mean over severities.",
    "clean: accuracy on the clean test images.",
    "others: mean accuracy in the environments other than the target.",
    "broken: break rate, the share of clean test images that were right before the repair and are wrong after it.",
    "calibration: expected calibration error on corrupted images, the gap between the DNN's confidence and its "
    "accuracy; 0 is best.",
    "seconds, images: duration of the repair and number of images read, including the choice of its settings.",
    "Accuracies, rates and calibration are in percent; ± is the standard deviation over seeds.",
)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; the deviation is None for one seed."""

    mean: float
    sd: float | None


@dataclass(frozen=True)
class Column:
    """A column of the table: its title, how to get its value from a row, and its format."""

    title: str
    value: Callable[[Row], float | None]
    kind: Literal["percent", "seconds", "count"] = "percent"


def others_mean(row: Row) -> float | None:
    values = list((row.get("other_corruptions") or {}).values())
    return float(np.mean(values)) if values else None


COLUMNS = (
    Column("D_fail %", lambda row: row.get("d_fail")),
    Column("corrupted %", lambda row: row.get("corrupted")),
    Column("clean %", lambda row: row.get("clean")),
    Column("others %", others_mean),
    Column("broken %", lambda row: row.get("break_rate")),
    Column("calibration %", lambda row: row.get("calibration_error")),
    Column("seconds", lambda row: row.get("seconds"), "seconds"),
    Column("images", lambda row: row.get("images_seen"), "count"),
)


OF_RIGHT_IMAGES = (
    "corrupted %",
    "calibration %",
)  # not known where all images of the environment are failures


def target_of(result: Result) -> str:
    """Return the name of the target."""
    return str(result["methods"][0]["target"])


def by_method(result: Result) -> dict[str, list[Row]]:
    """Return the rows of each method, one per seed, in the order of the file."""
    groups: dict[str, list[Row]] = {}
    for row in result["methods"]:
        groups.setdefault(str(row["method"]), []).append(row)
    return groups


def shown_row(result: Result) -> Row | None:
    """The repair whose side effects are told: the one that is taken, else MetaRepair, else the first; None if kept."""
    if "choice" in result:
        choice = result["choice"]
        rows = [
            r for r in result["methods"] if (r["method"], r["seed"]) == (choice["method"], choice["seed"])
        ]
        return None if choice["kept"] else rows[0]
    groups = {method: rows for method, rows in by_method(result).items() if method != "none"}
    shown = groups.get("metarepair") or next(iter(groups.values()), None)
    return shown[0] if shown else None


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return the mean and sample standard deviation of the finite values; None if there are none."""
    known = [float(v) for v in values if v is not None and math.isfinite(v)]
    if not known:
        return None
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Spread(float(np.mean(known)), sd)


def figures_of(result: Result) -> dict[str, float]:
    """Return the table's numbers, means over seeds, by TARGET/METHOD/COLUMN; accuracies and rates are fractions."""
    unknown = OF_RIGHT_IMAGES if knows_only_failures(result) else ()
    return {
        f"{target_of(result)}/{method}/{column.title.removesuffix(' %')}": found.mean
        for method, rows in by_method(result).items()
        for column in COLUMNS
        if column.title not in unknown and (found := spread(map(column.value, rows))) is not None
    }


def table_cells(result: Result) -> tuple[list[str], list[list[str]]]:
    """Return the header and one row of text per method."""
    unknown = OF_RIGHT_IMAGES if knows_only_failures(result) else ()
    rows = [
        [
            named(method, rows, result.get("choice")),
            *("—" if c.title in unknown else cell(spread(map(c.value, rows)), c.kind) for c in COLUMNS),
        ]
        for method, rows in by_method(result).items()
    ]
    return ["method", *(c.title for c in COLUMNS)], rows


def cell(found: Spread | None, kind: str) -> str:
    """Return a number as a table shows it; `—` if there is none."""
    if found is None:
        return "—"
    if kind == "count":
        return f"{found.mean:,.0f}"
    scale = 100 if kind == "percent" else 1
    spread_text = "" if found.sd is None else f" ± {scale * found.sd:.1f}"
    return f"{scale * found.mean:.1f}{spread_text}"


def paper_measure(result: Result) -> list[str]:
    """Return the paper's measure for methods that repair task by task: mean acc_s, and accuracy after episodes."""
    lines = []
    for method, rows in by_method(result).items():
        tasks, ends, sds = (
            spread(row.get(key) for row in rows)
            for key in ("d_fail_paper", "d_fail_episodes_mean", "d_fail_episodes_sd")
        )
        if tasks is None:
            continue
        line = f"{method_words(method)}: mean acc_s {cell(tasks, 'percent')}%"
        if ends is not None:
            sd = "" if sds is None else f" ± {percent(sds.mean)} over episodes"
            line += f"; on all of D_fail at the end of an episode {percent(ends.mean)}%{sd}"
        lines.append(line)
    return lines


def judged_by(result: Result, *, by_seed: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Describe by which images the repairs were judged.

    by_seed: the judging of each seed, if each has images of its own.
    """
    found = result.get("judging")
    if not found:
        return [
            "Judged as in older versions: D_fail is every failure that was not collected, and the other columns are of "
            "all test images, those of D_collect included."
        ]
    every = by_seed or [found]
    images, clean = (_from_to(one[key] for one in every) for key in ("images", "clean_images"))
    judged = "Each seed was judged by" if by_seed else "Judged by"
    if found["protocol"] == "own images":
        where = f"{images} of your images, which were set aside before anything else, and {clean} clean test images"
        return [
            f"{judged} {where}. Nothing was learned from them or chosen by them.",
            *_intervals(result, min(one["images"] for one in every), of_a_seed=bool(by_seed)),
        ]
    if found["protocol"] == "set aside":
        return [
            f"{judged} {images} test images ({float(found['fraction']):.0%}) that were set aside before mining: "
            "D_fail and every other column are of these. Nothing was learned from them or chosen by them."
        ]
    return [
        f"{judged} the paper's protocol (mining.judge_fraction: null): D_fail is every failure that was not collected. "
        f"The other columns are of the {images} test images outside of D_collect, which are easier than all: images "
        "were left out because the DNN failed on them."
    ]


def _from_to(counts: Iterable[int]) -> str:
    """`1,000`, or `998 to 1,002` if the counts differ."""
    ordered = sorted(counts)
    return " to ".join(f"{count:,}" for count in dict.fromkeys((ordered[0], ordered[-1])))


def _intervals(result: Result, images: int, *, of_a_seed: bool) -> list[str]:
    """Accuracy in the target's environment with its interval, by method, and whether the images are too few."""
    parts = []
    for method, rows in by_method(result).items():
        accuracy = _means(rows, "corrupted")
        if accuracy is None:
            continue
        right = round(accuracy * images)
        low, high = share_interval(right, images)
        parts.append(f"{method_words(method)} {percent(accuracy)}% ({percent(low)} to {percent(high)})")
    width = f", as wide as for the {images:,} images of one seed" if of_a_seed else ""
    lines = (
        [f"Accuracy in the environment with its 95% interval (Wilson{width}): {'; '.join(parts)}."]
        if parts
        else []
    )
    if images < FEW_IMAGES:
        each = "each seed " if of_a_seed else ""
        lines.append(
            f"With only {images} images to judge {each}by, a difference smaller than these intervals may be chance. "
            "Give more photographs, or a holdout, before you decide."
        )
    return lines


def preparation(result: Result) -> str:
    """Describe the cost of preparation before any repair, which a row's seconds do not include."""
    costs = result.get("preparations")
    if costs is not None:
        told = [f"{method_words(name)}: {_took(cost)}" for name, cost in costs.items()]
        shared = "Preparation for this target, which no row's seconds include, with its share of what serves others"
        return f"{shared}: {'; '.join(told) or 'none'}."
    if "metarepair" not in by_method(result):
        return "MetaRepair was not run for this target, so these rows involve no meta-training."
    spent = result.get("preparation") or {}
    if "seconds" not in spent:
        return "No preparation (meta-training) is recorded."
    return (
        f"Preparation, once for the target: meta-training of {spent.get('episodes', '?')} episodes took "
        f"{float(spent['seconds']):.1f} s. The seconds of MetaRepair's row do not include it."
    )


def _took(cost: Mapping[str, float | None]) -> str:
    if cost["core_seconds"] is None:
        return f"{cost['seconds']:,.0f} s"
    return (
        f"{cost['core_seconds']:,.0f} core-seconds in {cost['seconds']:,.0f} s, {cost['forward_images']:,} images "
        f"forward and {cost['backward_images']:,} backward"
    )


def results_table(result: Result) -> str:
    """Return the verdict, table, paper's measure and legend, as Markdown that also reads as plain text."""
    header, rows = table_cells(result)
    lines = [f"## {_markdown(target_of(result)).replace('_', ' ')}", ""]
    lines += [
        f"- {_markdown(line)}" for line in (*verdict(result), *taken_inside(result), *judged_by(result))
    ]
    lines += ["", *aligned(header, rows), ""]
    measured = paper_measure(result)
    if measured:
        lines += ["The paper's measure (acc_s: accuracy on a sample of D_fail after a repair task):", ""]
        lines += [*(f"- {_markdown(line)}" for line in measured), ""]
    lines += [preparation(result), "", "What the columns mean:", "", *(f"- {line}" for line in LEGEND)]
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table that also reads as plain text."""
    table = [[_markdown(cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    written = [
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in table
    ]
    rule = "| " + " | ".join(["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]) + " |"
    return [written[0], rule, *written[1:]]


def verdict(result: Result) -> list[str]:
    """Return the outcome in sentences, whether it favours MetaRepair or not; with limits, that of the choice."""
    groups = by_method(result)
    if "choice" in result:
        return [outcome_of(result).words]
    shown = shown_row(result)
    lost = [] if shown is None else lost_words(shown)
    meta, tuned = groups.get("metarepair"), groups.get("finetune")
    if meta is None:
        return [*lost, "MetaRepair was not run for this target, so there is no verdict on it."]
    lines = lost
    lines += _against_tuned(meta, tuned) if tuned else ["Fine-tuning was not run, so there is no comparison."]
    lines += _best(groups) + _on_corrupted(groups.get("none"), meta) + _clean(meta, tuned)
    if len(meta) == 1:
        lines.append("There is only one seed, so these differences may be chance.")
    return lines


def _means(rows: Sequence[Row] | None, key: str) -> float | None:
    found = spread(row.get(key) for row in rows or ())
    return None if found is None else found.mean


def _against_tuned(meta: Sequence[Row], tuned: Sequence[Row]) -> list[str]:
    ours, theirs = _means(meta, "d_fail"), _means(tuned, "d_fail")
    if ours is None or theirs is None:
        return ["D_fail was not measured for both MetaRepair and fine-tuned."]
    by_seed = {row["seed"]: row["d_fail"] for row in tuned}
    wins = [row["d_fail"] > by_seed[row["seed"]] for row in meta if row["seed"] in by_seed]
    gain = round(100 * (ours - theirs), 1)
    where = "is better than" if gain > 0 else "is worse than" if gain < 0 else "is equal to"
    seeds = f"; better in {sum(wins)} of {len(wins)} seeds" if len(wins) > 1 else ""
    numbers = f"{percent(ours)}% against {percent(theirs)}%, {points(ours - theirs)}"
    return [f"MetaRepair {where} fine-tuned on D_fail: {numbers}{seeds}."]


def _best(groups: Mapping[str, list[Row]]) -> list[str]:
    means = {method: mean for method, rows in groups.items() if (mean := _means(rows, "d_fail")) is not None}
    best = max(
        means,
        key=lambda method: (round(100 * means[method], 1), method == "metarepair"),
        default="metarepair",
    )
    if best in ("metarepair", "finetune"):
        return []
    return [f"Another method is best on D_fail: {method_words(best)} with {percent(means[best])}%."]


def _on_corrupted(before: Sequence[Row] | None, meta: Sequence[Row]) -> list[str]:
    old, new = _means(before, "corrupted"), _means(meta, "corrupted")
    if old is None or new is None:
        return []
    change = round(100 * (new - old), 1)
    verb = "rose" if change > 0 else "fell" if change < 0 else "did not change"
    return [
        f"Accuracy in the target's environment {verb}: {percent(old)}% before, {percent(new)}% after MetaRepair, "
        f"{points(new - old)}."
    ]


def _clean(meta: Sequence[Row], tuned: Sequence[Row] | None) -> list[str]:
    ours, before, theirs = _means(meta, "clean"), _means(meta, "clean_before"), _means(tuned, "clean")
    if ours is None or before is None:
        return ["Clean accuracy was not measured."]
    held = round(100 * (before - ours), 1) <= CLEAN_HELD_POINTS
    lines = [
        f"Clean accuracy {'was maintained' if held else 'fell'}: {percent(before)}% before, {percent(ours)}% after "
        f"MetaRepair, {points(ours - before)}. (A loss of at most {CLEAN_HELD_POINTS:.1f} points counts as maintained.)"
    ]
    if theirs is not None:
        gain = round(100 * (ours - theirs), 1)
        verdict = "higher" if gain > 0 else "lower" if gain < 0 else "the same"
        lines.append(
            f"Compared with fine-tuned, clean accuracy is {verdict}: {percent(ours)}% for "
            f"MetaRepair, {percent(theirs)}% for fine-tuned, {points(ours - theirs)}."
        )
    return lines


_TEXT = ("method", "target", "notes", "weights", "features")
_WHOLE = ("seed", "images_seen", "gradient_steps")


def rows_table(results: Sequence[Result]) -> pa.Table:
    """Return all rows of all targets, with a column per number, severity and other corruption; null: not measured."""
    rows = [_flat(row, result) for result in results for row in result["methods"]]
    names = list(dict.fromkeys(name for row in rows for name in row))
    names.sort(key=lambda name: name.startswith(("corrupted_severity_", "other_")))
    kinds = {**dict.fromkeys(_TEXT, pa.string()), **dict.fromkeys(_WHOLE, pa.int64())}
    return pa.table(
        {name: pa.array([row.get(name) for row in rows], kinds.get(name, pa.float64())) for name in names}
    )


def _flat(row: Row, result: Result) -> dict[str, Any]:
    flat = {key: row[key] for key in row if key in _TEXT or isinstance(row[key], int | float | None)}
    flat |= {"notes": "; ".join(row.get("notes") or ()), "features": result.get("features")}
    flat |= {f"corrupted_severity_{s}": v for s, v in (row.get("corrupted_by_severity") or {}).items()}
    return flat | {f"other_{name}": v for name, v in (row.get("other_corruptions") or {}).items()}


def write_tables(folder: Place, results: Sequence[Result]) -> tuple[Place, Place]:
    """Write `rows_table` as results.csv and results.parquet; each file appears complete or not at all."""
    table, paths = rows_table(results), (folder / "results.csv", folder / "results.parquet")
    for path in paths:
        write_table(path, table)
    return paths

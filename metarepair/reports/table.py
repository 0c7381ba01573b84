"""A target's result.json in; a table, its legend and a verdict in sentences out; all rows as CSV and Parquet.

Accuracies are fractions in result.json and percent here. Reading: items 9, 10 and 15.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from metarepair.methods import METHODS, all_methods
from tasks.storage.paths import Place, write_table

Row = Mapping[str, Any]
Result = Mapping[str, Any]

CLEAN_HELD_POINTS = 1.0  # clean accuracy counts as held when no more than this is lost
LEGEND = (
    "D_fail: accuracy on the failures that nothing has learned from. Only failures are in it, so it is 0 "
    "before repair by construction, and says nothing without the columns beside it.",
    "corrupted: accuracy on all test images with the target corruption, mean over severities.",
    "clean: accuracy on the test images without corruption.",
    "others: mean accuracy on the corruptions that were not the target.",
    "repaired: repair rate, the share of D_fail that the repaired DNN gets right (D_fail once more).",
    "broken: break rate, the share of clean test images that were right before and are wrong now.",
    "calibration: expected calibration error on corrupted images, how far the DNN's own confidence is off; "
    "0 is best.",
    "seconds, images: time of the repair and images that it read, with those of choosing its settings.",
    "Accuracies, rates and calibration are percent; ± is the standard deviation over seeds.",
)


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, sample standard deviation (None for one seed)."""

    mean: float
    sd: float | None


@dataclass(frozen=True)
class Column:
    """A column of the table: its title, its number in a row, and how it is written."""

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
    Column("repaired %", lambda row: row.get("repair_rate")),
    Column("broken %", lambda row: row.get("break_rate")),
    Column("calibration %", lambda row: row.get("calibration_error")),
    Column("seconds", lambda row: row.get("seconds"), "seconds"),
    Column("images", lambda row: row.get("images_seen"), "count"),
)


def target_of(result: Result) -> str:
    """The corruption that was repaired."""
    return str(result["methods"][0]["target"])


def method_words(method: str) -> str:
    """A method's name as a person would say it."""
    known = METHODS.get(method) or all_methods().get(method)
    return known.words if known else method


def by_method(result: Result) -> dict[str, list[Row]]:
    """The rows of each method, one per seed, in the order of the file."""
    groups: dict[str, list[Row]] = {}
    for row in result["methods"]:
        groups.setdefault(str(row["method"]), []).append(row)
    return groups


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and sample standard deviation of what is there and finite; None when nothing is."""
    known = [float(v) for v in values if v is not None and math.isfinite(v)]
    if not known:
        return None
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Spread(float(np.mean(known)), sd)


def percent(fraction: float) -> str:
    """`45.3` for 0.453."""
    return f"{100 * fraction:.1f}"


def points(difference: float) -> str:
    """`+3.2 points` for a difference of fractions of 0.032."""
    rounded = round(100 * difference, 1)
    sign = "+" if rounded > 0 else "−" if rounded < 0 else "±"
    return f"{sign}{abs(rounded):.1f} points"


def table_cells(result: Result) -> tuple[list[str], list[list[str]]]:
    """Header and one row of text per method."""
    rows = [
        [method_words(method), *(cell(spread(c.value(row) for row in rows), c.kind) for c in COLUMNS)]
        for method, rows in by_method(result).items()
    ]
    return ["method", *(c.title for c in COLUMNS)], rows


def cell(found: Spread | None, kind: str) -> str:
    """A number as a table shows it, `—` where there is none."""
    if found is None:
        return "—"
    if kind == "count":
        return f"{found.mean:,.0f}"
    scale = 100 if kind == "percent" else 1
    spread_text = "" if found.sd is None else f" ± {scale * found.sd:.1f}"
    return f"{scale * found.mean:.1f}{spread_text}"


def paper_measure(result: Result) -> list[str]:
    """The paper's own number for methods that repair task by task: mean acc_s, and the ends of episodes."""
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


def preparation(result: Result) -> str:
    """What was spent before any repair, which the seconds of a row do not hold."""
    if "metarepair" not in by_method(result):
        return "MetaRepair was not run for this target, so no meta-training belongs to these rows."
    spent = result.get("preparation") or {}
    if "seconds" not in spent:
        return "No preparation (meta-training) is recorded."
    return (
        f"Preparation, once for the target: meta-training of {spent.get('episodes', '?')} episodes took "
        f"{float(spent['seconds']):.1f} s. It is not in the seconds of MetaRepair's row."
    )


def results_table(result: Result) -> str:
    """Verdict, table, the paper's measure and the legend, as Markdown that also reads as plain text."""
    header, rows = table_cells(result)
    lines = [f"## {_markdown(target_of(result)).replace('_', ' ')}", ""]
    lines += [f"- {_markdown(line)}" for line in verdict(result)]
    lines += ["", *aligned(header, rows), ""]
    measured = paper_measure(result)
    if measured:
        lines += ["The paper's measure (acc_s: accuracy on a draw of D_fail after a task of the repair):", ""]
        lines += [*(f"- {_markdown(line)}" for line in measured), ""]
    lines += [preparation(result), "", "What the columns say:", "", *(f"- {line}" for line in LEGEND)]
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table that also reads as plain text."""
    table = [[_markdown(cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    written = [
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in table
    ]
    rule = "| " + " | ".join(["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]) + " |"
    return [written[0], rule, *written[1:]]


def verdict(result: Result) -> list[str]:
    """What came out, in sentences: for MetaRepair where it is better, against it where it is not."""
    groups = by_method(result)
    meta, tuned = groups.get("metarepair"), groups.get("finetune")
    if meta is None:
        return ["MetaRepair was not run for this target, so there is no verdict on it."]
    lines = _against_tuned(meta, tuned) if tuned else ["Fine-tuning was not run to compare with."]
    lines += _best(groups) + _on_corrupted(groups.get("none"), meta) + _clean(meta, tuned)
    if len(meta) == 1:
        lines.append("There is one seed only: such differences may be chance.")
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
    where = "is above" if gain > 0 else "is not above but below" if gain < 0 else "is level with"
    seeds = f"; above in {sum(wins)} of {len(wins)} seeds" if len(wins) > 1 else ""
    numbers = f"{percent(ours)}% against {percent(theirs)}%, {points(ours - theirs)}"
    return [f"MetaRepair {where} fine-tuned on D_fail: {numbers}{seeds}."]


def _best(groups: Mapping[str, list[Row]]) -> list[str]:
    means = {method: mean for method, rows in groups.items() if (mean := _means(rows, "d_fail")) is not None}
    best = max(means, key=lambda method: means[method], default="metarepair")
    if best in ("metarepair", "finetune"):
        return []
    return [f"The best on D_fail is another method: {method_words(best)} with {percent(means[best])}%."]


def _on_corrupted(before: Sequence[Row] | None, meta: Sequence[Row]) -> list[str]:
    old, new = _means(before, "corrupted"), _means(meta, "corrupted")
    if old is None or new is None:
        return []
    change = round(100 * (new - old), 1)
    verb = "got better" if change > 0 else "got worse" if change < 0 else "did not change"
    return [
        f"The whole corrupted set {verb}: {percent(old)}% before, {percent(new)}% after MetaRepair, "
        f"{points(new - old)}."
    ]


def _clean(meta: Sequence[Row], tuned: Sequence[Row] | None) -> list[str]:
    ours, before, theirs = _means(meta, "clean"), _means(meta, "clean_before"), _means(tuned, "clean")
    if ours is None or before is None:
        return ["Clean accuracy was not measured."]
    held = round(100 * (before - ours), 1) <= CLEAN_HELD_POINTS
    lines = [
        f"Clean accuracy was {'held' if held else 'lost'}: {percent(before)}% before, {percent(ours)}% after "
        f"MetaRepair, {points(ours - before)} (held: at most {CLEAN_HELD_POINTS:.1f} points lost)."
    ]
    if theirs is not None:
        worse = round(100 * (theirs - ours), 1) > CLEAN_HELD_POINTS
        lines.append(
            f"Against fine-tuned, clean accuracy was {'lost' if worse else 'held'}: {percent(ours)}% for "
            f"MetaRepair, {percent(theirs)}% for fine-tuned, {points(ours - theirs)}."
        )
    return lines


_TEXT = ("method", "target", "notes", "weights", "features")
_WHOLE = ("seed", "images_seen", "gradient_steps")


def rows_table(results: Sequence[Result]) -> pa.Table:
    """All rows of all targets: one column per number, severity and other corruption; null: not measured."""
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
    """`rows_table` as results.csv and results.parquet; each appears complete or not at all."""
    table, paths = rows_table(results), (folder / "results.csv", folder / "results.parquet")
    for path in paths:
        write_table(path, table)
    return paths

"""Build the parts of a comparison's report from judged repairs: sentences and tables, for Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metarepair.compare.seeds import varies_everything
from metarepair.compare.units import limit_of
from metarepair.config.run import Config
from metarepair.evaluation.judging import readings, readings_of_seeds
from metarepair.methods import get_method
from metarepair.methods.budget import Cost
from metarepair.repairs.costs import preparation_cost, repair_cost
from metarepair.reports.outcome import lost_words, named, taken_inside
from metarepair.reports.paper import DIFFERENCES, table_for
from metarepair.reports.table import Column, Row, by_method, cell, judged_by, others_mean, spread
from metarepair.reports.words import method_words, percent, plain_words
from metarepair.runs.layout import Run

Result = dict[str, Any]
PASSES = ("forward", "backward")
UNKNOWN = "—"  # of a repair or a preparation from before it was counted

LEGEND = (
    "D_fail: accuracy on the target's failures that nothing has learned from; 0 before repair by construction. It is "
    "the repair rate.",
    "corrupted: accuracy in the target's environment, mean over severities; clean: on clean test images; others: mean "
    "over the environments that were not the target.",
    "broken: break rate, the share of the clean test images that were right before and are wrong now; of corrupted: "
    "the same for the images of the target's environment.",
    "seconds, images: of the repair alone, including the choice of its settings; images are those to learn from. "
    "memory: the peak of its process.",
    "Accuracies and rates are in percent; ± is the standard deviation over seeds, {varied}.",
)
VARIED = {
    "repair": "of the repairs alone: mining and preparation happened once",
    "everything": "of everything: mining split, preparation and repair",
}


def _number(key: str) -> Callable[[Row], float | None]:
    return lambda row: row.get(key)


def _mib(row: Row) -> float | None:
    held = row.get("memory_bytes")
    return None if held is None else held / 2**20


COLUMNS = (
    Column("D_fail %", _number("d_fail")),
    Column("corrupted %", _number("corrupted")),
    Column("clean %", _number("clean")),
    Column("others %", others_mean),
    Column("broken %", _number("break_rate")),
    Column("of corrupted %", _number("break_rate_corrupted")),
    Column("seconds", _number("seconds"), "seconds"),
    Column("images", _number("images_seen"), "count"),
    Column("memory, MiB", _mib, "count"),
)


@dataclass(frozen=True, kw_only=True)
class ReportPart:
    """A section: a title, sentences, and a table if `header` is given."""

    title: str
    lines: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def title_of(config: Config, results: Sequence[Result]) -> str:
    """The title of the report."""
    count = len(by_method(results[0]))
    return f"{count} {'method' if count == 1 else 'methods'} on {config.model.name}, {config.data.name}"


def parts_of(runs: Sequence[Run], config: Config, results: Sequence[Result]) -> list[ReportPart]:
    """All sections, in order. runs: the comparison's own, or those of its seeds if they vary everything."""
    lost = tuple(line for result in results for line in _lost(result))
    first = [ReportPart(title="classes that a repair loses", lines=lost)] if lost else []
    over = [_columns("mean over targets", _over_targets(results))] if len(results) > 1 else []
    each = [
        _columns(
            r["target"].replace("_", " "),
            r,
            (*leaders(r), *taken_inside(r), *_judged_by(config, r), *_readings(runs, config, r["target"])),
        )
        for r in results
    ]
    lines = tuple(line.format(varied=VARIED[config.compare.vary]) for line in LEGEND)
    legend = ReportPart(title="what the columns mean", lines=lines)
    terms = [_terms(config, results), _costs(runs, config, results)]
    return [*first, *over, *each, legend, *terms, _beside_paper(config, results)]


def _lost(result: Result) -> Iterator[str]:
    """A sentence for each repair after which a class is hardly found any more."""
    for row in result["methods"]:
        for words in lost_words(row):
            yield f"{plain_words(result['target'])}, {method_words(row['method'])}, seed {row['seed']}: {words}"


def _readings(runs: Sequence[Run], config: Config, target: str) -> list[str]:
    return readings_of_seeds(runs, target) if varies_everything(config) else readings(runs[0], target)


def _columns(title: str, result: Mapping[str, Any], lines: Iterable[str] = ()) -> ReportPart:
    rows = [
        [named(method, rows), *(cell(spread(c.value(row) for row in rows), c.kind) for c in COLUMNS)]
        for method, rows in by_method(result).items()
    ]
    header = ["method", *(c.title for c in COLUMNS)]
    return ReportPart(title=title, lines=tuple(lines), header=tuple(header), rows=tuple(map(tuple, rows)))


def _judged_by(config: Config, result: Result) -> list[str]:
    """By which images the rows were judged: all of a seed by the same, and if only the repair varies, all rows."""
    by_seed = list({row["seed"]: row.get("judging") for row in result["methods"]}.values())
    return judged_by(result | {"judging": by_seed[0]}, by_seed=by_seed if varies_everything(config) else ())


def _over_targets(results: Sequence[Result]) -> Result:
    """Rows whose numbers are means over the targets, one per method and seed."""
    numbers: dict[tuple[str, int], list[Row]] = {}
    for result in results:
        for row in result["methods"]:
            numbers.setdefault((row["method"], row["seed"]), []).append(row)
    keys = (
        "d_fail",
        "corrupted",
        "clean",
        "break_rate",
        "break_rate_corrupted",
        "seconds",
        "images_seen",
        "memory_bytes",
    )
    return {
        "methods": [
            {"method": method, "seed": seed}
            | {"other_corruptions": {} if (others := _mean(rows, others_mean)) is None else {"mean": others}}
            | {key: _mean(rows, _number(key)) for key in keys}
            for (method, seed), rows in numbers.items()
        ]
    }


def _mean(rows: Sequence[Row], value: Callable[[Row], float | None]) -> float | None:
    values = spread(value(row) for row in rows)
    return None if values is None else values.mean


def leaders(result: Mapping[str, Any]) -> Iterator[str]:
    """Sentences that name the best methods on D_fail, on the whole corrupted set and on clean images."""
    groups = {m: rows for m, rows in by_method(result).items() if m != "none"}
    before = by_method(result).get("none")
    for key, words in (
        ("d_fail", "D_fail"),
        ("corrupted", "the target's environment"),
        ("clean", "clean images"),
    ):
        means = {m: mean for m, rows in groups.items() if (mean := _mean(rows, _number(key))) is not None}
        if not means:
            continue
        ranked = sorted(means, key=lambda m: -means[m])
        best, second = ranked[0], ranked[1:2]
        line = f"Best on {words}: {method_words(best)}, {percent(means[best])}%"
        line += "".join(f"; then {method_words(m)}, {percent(means[m])}%" for m in second)
        old = None if before is None else _mean(before, _number(key))
        yield line + ("." if old is None else f"; {percent(old)}% before repair.")


def _terms(config: Config, results: Sequence[Result]) -> ReportPart:
    """Data, changes and budget of every method."""
    header = ("method", "may use", "changes", "budget of a repair", "cost")
    rows = []
    for name in by_method(results[0]):
        method, limit = get_method(name), limit_of(config, name)
        rows.append(
            (
                method.words,
                ", ".join(method.uses_with(config)) or "nothing",
                ", ".join(method.changes) or "nothing",
                "its own settings" if limit is None else str(limit),
                method.cost,
            )
        )
    return ReportPart(title="what each method was given and took", header=header, rows=tuple(rows))


def _costs(runs: Sequence[Run], config: Config, results: Sequence[Result]) -> ReportPart:
    """What preparation and repair took, for one target."""
    lines = [
        "For one target, mean over targets and seeds. Preparation that serves several targets is counted once and "
        "divided. Core-seconds are the processor time of all threads and workers; the processors of GPUs do not count.",
        "Forward and backward: images that passed through the whole DNN, for any purpose, once for each pass.",
    ]
    if config.preparation_budget is not None:
        lines.append(
            f"Each preparation was given {config.preparation_budget:g} core-seconds for all targets together "
            "(preparation_budget)."
        )
    header = ["method"]
    header += [f"{part}: {unit}" for part in ("preparation", "repair") for unit in ("core-s", "s", *PASSES)]
    rows = []
    for name in by_method(results[0]):
        made = preparation_cost(runs, config, name, config.targets)
        repairs = repair_cost([row for result in results for row in by_method(result).get(name, ())])
        whole = repairs if made is None else made + repairs
        rows.append((method_words(name), *_cells(made), *_cells(repairs), _time(whole.core_seconds)))
    return ReportPart(
        title="what preparation and repair took",
        lines=tuple(lines),
        header=(*header, "in all: core-s"),
        rows=tuple(rows),
    )


def _cells(cost: Cost | None) -> tuple[str, ...]:
    if cost is None:
        return ("none",) * (2 + len(PASSES))
    images = (cost.forward_images, cost.backward_images)
    known = not math.isnan(cost.core_seconds)
    counts = (f"{count:,}" if known else UNKNOWN for count in images)
    return (_time(cost.core_seconds), _time(cost.seconds), *counts)


def _time(seconds: float) -> str:
    return UNKNOWN if math.isnan(seconds) else f"{seconds:,.{0 if seconds >= 10 else 1}f}"


def _beside_paper(config: Config, results: Sequence[Result]) -> ReportPart:
    """The paper's table of this data set with our numbers beside it, for the targets that it has."""
    table = table_for(config.data.name)
    known = [result for result in results if table is not None and table.column(result["target"])]
    if table is None or not known:
        none = f"The paper has no number for these targets on {config.data.name}."
        return ReportPart(title="beside the paper", lines=(none,))
    header = ["method"]
    for result in known:
        header += [f"{result['target']}: paper", "here, all of D_fail"]
    ours = {method_words(m).partition(" (")[0]: m for m in by_method(results[0])}
    rows = []
    for method in [*ours, *(m for m in table.rows if m not in ours)]:
        line = [method]
        for result in known:
            theirs = table.column(result["target"]).get(method)
            here = spread(row.get("d_fail") for row in by_method(result).get(ours.get(method, ""), ()))
            line += ["—" if theirs is None else f"{theirs:.2f}", cell(here, "percent")]
        rows.append(tuple(line))
    where = f"beside the paper's {table.name}: {table.dnn}, {table.data}, clean {table.clean}%"
    return ReportPart(title=where, lines=(DIFFERENCES,), header=tuple(header), rows=tuple(rows))

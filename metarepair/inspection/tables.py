"""Format plain-text tables: environments by severity and class, features, repairs of a comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from metarepair.inspection.facts import (
    BAD,
    EnvironmentFacts,
    FeatureFacts,
    MethodFacts,
    RepairFacts,
    StageFacts,
)
from metarepair.inspection.stored import JUDGED
from metarepair.runs.progress import times

NAMED_CLASSES = 12  # if there are more classes, only the extremes are shown
WORST = 5
METHOD_HEAD = ("method", "seed", "D_fail", "corrupted", "clean")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return an aligned table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in [head, *rows]
    ]


def severity_table(facts: EnvironmentFacts) -> list[str]:
    """Return one environment's table, with a row for each severity."""
    rows = [
        [severity, count(s.examined), percent(s.accuracy), count(s.failures), count(s.collected)]
        for severity, s in facts.severities.items()
    ]
    return table(["severity", "examined", "accuracy", "failures", "collected"], rows)


def environments_table(stages: Sequence[StageFacts]) -> list[str]:
    """Return a table with a row for each environment: accuracy and rows of D_collect by severity."""
    found = [(stage, facts) for stage in stages if isinstance(facts := stage.details, EnvironmentFacts)]
    severities = sorted({s for _, facts in found for s in facts.severities}, key=int)
    head = [
        "environment",
        "examined",
        *(f"acc s{s}" for s in severities),
        "D_collect",
        *(f"s{s}" for s in severities),
    ]
    head += ["D_fail", "unused", "size", "checksums"]
    rows = []
    for stage, facts in found:
        by = facts.severities
        seen = [s.examined for s in by.values() if s.examined is not None]
        cells = [stage.path, count(sum(seen) if seen else None)]
        cells += [percent(by[s].accuracy) if s in by else "?" for s in severities]
        cells.append(count(stage.rows.get("collect")))
        cells += [count(by[s].collected) if s in by else "?" for s in severities]
        cells += [count(stage.rows.get("fail")), count(stage.rows.get("unused")), size(stage.size_bytes)]
        rows.append([*cells, _state(stage, f"{facts.parts} shards")])
    return table(head, rows)


def features_table(stages: Sequence[StageFacts]) -> list[str]:
    """Return a table with a row for the features of each environment."""
    rows = []
    for stage in stages:
        facts = stage.details if isinstance(stage.details, FeatureFacts) else None
        known = [facts.extractor or "?", count(facts.dim)] if facts is not None else ["?", "?"]
        state = _state(stage, f"{feature_parts(stage)} parts")
        rows.append([stage.path, count(stage.rows.get("features")), *known, size(stage.size_bytes), state])
    return table(["features", "rows", "extractor", "dim", "size", "checksums"], rows)


def feature_parts(stage: StageFacts) -> int:
    """Return how many of the stage's feature files exist."""
    return sum(file.name.endswith(".parquet") and file.state != "missing" for file in stage.files)


def compared_table(stages: Sequence[StageFacts]) -> list[str]:
    """Return a table with a row for each repair of a comparison; the last column says what is missing."""
    rows = []
    for stage in stages:
        for m in stage.details.methods if isinstance(stage.details, RepairFacts) else ():
            rows.append([m.target or "?", *method_cells(m), _judged(stage)])
    return table(["target", *METHOD_HEAD, "state"], rows)


def method_cells(m: MethodFacts) -> list[str]:
    """Return the cells of a method's row, in the order of METHOD_HEAD."""
    seed = "?" if m.seed is None else str(m.seed)
    return [m.method, seed, *map(percent, (m.d_fail, m.corrupted, m.clean))]


def _judged(stage: StageFacts) -> str:
    bad = [f"{file.name} {file.state}" for file in stage.files if file.state in BAD]
    if stage.manifest != "ok" or bad:
        return ", ".join(bad) or _state(stage, "not repaired yet")
    whole = {file.name for file in stage.files if file.state == "ok"}
    return "judged" if whole.issuperset(JUDGED) else "not judged yet"


def _state(stage: StageFacts, there: str) -> str:
    if stage.manifest == "damaged":
        return "manifest damaged"
    return tally(file.state for file in stage.files) if stage.finished else f"unfinished, {there}"


def classes_table(stages: Sequence[StageFacts]) -> list[str]:
    """Return D_collect by class, a row for each environment; if there are many classes, only the extremes."""
    found = [(stage, facts) for stage in stages if isinstance(facts := stage.details, EnvironmentFacts)]
    found = [(stage, facts) for stage, facts in found if facts.collected_per_class]
    if not found:
        return ["D_collect by class is unknown."]
    names = list(dict.fromkeys(name for _, facts in found for name in facts.collected_per_class))
    title = "D_collect by class" + ("" if all(facts.classes_named for _, facts in found) else " (by number)")
    if len(names) <= NAMED_CLASSES:
        rows = [
            [_path(stage), *(count(facts.collected_per_class.get(name)) for name in names)]
            for stage, facts in found
        ]
        return table([title, *names], rows)
    lines = [f"{title}, {len(names)} classes"]
    return lines + [f"{_path(stage)}: {_extremes(facts.collected_per_class)}" for stage, facts in found]


def _path(stage: StageFacts) -> str:
    return "failures" if stage.path == "." else stage.path


def _extremes(counts: dict[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    without = [name for name, number in ranked if not number]
    most = ", ".join(f"{name} {number}" for name, number in ranked[:WORST])
    least = ", ".join(f"{name} {number}" for name, number in ranked[-WORST:])
    return f"most {most}; fewest {least}; {len(without)} classes have none"


def d_fail_reads(number: int | None) -> list[str]:
    """Return the line about reads of D_fail; empty if there is no log of them."""
    return [] if number is None else [f"D_fail was opened {times(number)} so far, to judge repairs."]


def count(number: object) -> str:
    """Return `12,345`, or `?` if unknown."""
    return f"{number:,}" if isinstance(number, int) else "?"


def percent(fraction: float | None) -> str:
    """Return `12.3%`, or `?` if unknown."""
    return "?" if fraction is None else f"{fraction:.1%}"


def size(size_bytes: int | None) -> str:
    """Return `1.5 MiB`, or `-` if the size is None."""
    if size_bytes is None:
        return "-"
    value, unit = float(size_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{size_bytes} B" if unit == "B" else f"{value:.1f} {unit}"


def tally(states: Iterable[str]) -> str:
    """Return `5 ok, 1 missing`, with bad states last."""
    counts = Counter(states)
    order = ("ok", "unchecked", "differs", "missing", "unreadable")
    return ", ".join(f"{counts[state]} {state}" for state in order if counts[state]) or "no files"

"""Climb the ladder of MetaRepair's settings: one change a rung, judged on pseudo-targets, all of it resumable.

A rung is a run for all targets of `benchmarks/ladder.yaml` and one seed. It shares the finished stages of the rung
that it starts `from` by links to their files. The table has a row for each rung and method: the mean over targets and
seeds, its difference to the first row with the standard error of that over targets and seeds, and the processor time of
the preparation for all targets and of one repair.
Command: METAREPAIR_DATA=/path/to/data python -m benchmarks.ladder --out FOLDER [--rungs RUNG ...] [--seeds 0 1]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from metarepair.config.kit import merged
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.repairs.costs import preparation_cost
from metarepair.reports.table import others_mean
from metarepair.runs.layout import Run
from metarepair.stages.pipeline import Pipeline

LADDER = Path(__file__).with_name("ladder.yaml")
SHARED = ("environments", "experiences", "targets", "features", "score", "joint")
COLUMNS = {"d_fail": "D_fail", "corrupted": "environment", "clean": "clean", "others": "others"}
COSTS = ("prepared_core_s", "repair_core_s")


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A rung: its settings for any seed, the rung that it starts from, and what it trains anew."""

    name: str
    values: dict[str, Any]
    start: str | None
    trains_jointly: bool

    def config(self, out: Path, seed: int) -> Config:
        """The settings of its run for a seed."""
        return parse_config(
            self.values | {"name": f"{self.name}-{seed}", "storage_path": str(out), "seed": seed}
        )


def read_ladder(path: Path) -> dict[str, Rung]:
    """Read all rungs. Raises ValueError for one that starts from an unknown or a later rung."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    rungs: dict[str, Rung] = {}
    for name, given in content["rungs"].items():
        changes = {key: value for key, value in given.items() if key not in ("from", "methods")}
        start = given.get("from")
        if start is not None and start not in rungs:
            raise ValueError(f"{path}: the rung {name} starts from {start!r}, which does not stand above it")
        usual = content["base"] if start is None else rungs[start].values
        values = merged(usual, merged(changes, {"repair": {"methods": given["methods"]}}))
        rungs[name] = Rung(name=name, values=values, start=start, trains_jointly="joint" in changes)
    return rungs


def share(source: Path, run: Path, folders: Sequence[str]) -> None:
    """Link the files of a finished run's folders into another run, unless it has them."""
    for folder in folders:
        if (source / folder).is_dir() and not (run / folder).exists():
            part = run / f"{folder}.part"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(source / folder, part, copy_function=os.link)
            part.rename(run / folder)


def climb(rung: Rung, out: Path, seed: int) -> list[dict[str, Any]]:
    """Make the rung's run, or what is missing of it; return a row for each target and method."""
    config = rung.config(out, seed)
    run = Run(out / config.name)
    run.root.mkdir(parents=True, exist_ok=True)
    if rung.start is not None:
        folders = [one for one in SHARED if not (one == "joint" and rung.trains_jointly)]
        share(out / f"{rung.start}-{seed}", Path(str(run.root)), folders)
    Pipeline(config).whole()
    rows = []
    for target in config.targets:
        result = json.loads((run.repaired(target) / "result.json").read_text())
        for row in result["methods"]:
            cost = preparation_cost([run], config, row["method"], [target])
            prepared = 0.0 if cost is None else cost.core_seconds * len(config.targets)
            rows.append(
                {"rung": rung.name, "method": row["method"], "target": target, "seed": seed}
                | {key: row[key] for key in COLUMNS if key in row}
                | {"others": others_mean(row)}
                | {"prepared_core_s": prepared, "repair_core_s": row["core_seconds"]}
            )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as a Markdown table; differences are to the first rung's first method on the same target and seed."""
    head = " | ".join(f"{words} | ±" for words in COLUMNS.values())
    lines = [f"| rung | method | {head} | preparation, core-s | repair, core-s | cells |"]
    lines.append("| --- | --- |" + " ---: |" * (2 * len(COLUMNS) + 3))
    groups: dict[tuple[str, str], dict[tuple[str, int], Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["rung"], row["method"]), {})[row["target"], row["seed"]] = row
    bar = next(iter(groups.values()))
    for (rung, method), cells in groups.items():
        shown = []
        for column in COLUMNS:
            mean = 100 * np.mean([cell[column] for cell in cells.values()])
            apart = [100 * (cell[column] - bar[key][column]) for key, cell in cells.items() if key in bar]
            error = np.std(apart, ddof=1) / np.sqrt(len(apart)) if len(apart) > 1 else float("nan")
            shown += [f"{mean:.1f}", "" if cells is bar else f"{np.mean(apart):+.1f} ± {error:.1f}"]
        costs = [f"{np.mean([cell[key] for cell in cells.values()]):.0f}" for key in COSTS]
        lines.append(f"| {rung} | `{method}` | {' | '.join(shown + costs)} | {len(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--ladder", type=Path, default=LADDER, help="file of the rungs")
    parser.add_argument("--rungs", nargs="+", help="rungs to climb, in their order; all if not given")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    given = parser.parse_args()
    rungs, rows = read_ladder(given.ladder), []
    for name in given.rungs or rungs:
        for seed in given.seeds:
            rows += climb(rungs[name], given.out, seed)
            (given.out / f"rows-{'-'.join(map(str, given.seeds))}.json").write_text(
                json.dumps(rows, indent=1)
            )
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()

"""Measure how far the figures of a run move with the instruction set that torch uses.

    python -m benchmarks.cpu_capability --out FOLDER
    python -m benchmarks.cpu_capability --out FOLDER --capabilities default as_is --seeds 0 1 --set train.episodes=2

Each run is `metarepair run` in a process of its own, under ATEN_CPU_CAPABILITY (`as_is`: without that variable, so
torch takes the widest set that the processor has). A run of the sample takes about four minutes of two cores. Runs
that are complete in FOLDER are not run again, and an interrupted one resumes; give a new FOLDER for other settings.
The variable selects torch's own kernels; oneDNN and the BLAS library still choose by the processor.

Writes FOLDER/table.md: for each capability, mean and standard deviation over seeds; then the differences from the last
capability, seed by seed, as mean and largest amount.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from metarepair.reports import load_results
from metarepair.reports.table import COLUMNS, Column, Row, aligned, cell, spread
from metarepair.reports.words import method_words
from metarepair.runs.layout import Run
from tasks.storage.manifest import read_manifest

VARIABLE, AS_IS = "ATEN_CPU_CAPABILITY", "as_is"
CAPABILITIES = ("default", "avx2", AS_IS)
SHOWN: tuple[Column, ...] = tuple(column for column in COLUMNS if column.kind == "percent")
Found = Mapping[tuple[str, int], Mapping[str, Row]]  # rows by method, of each capability and seed


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options.add_argument("--config", default="tune_configs/sample.yaml")
    options.add_argument("--capabilities", nargs="+", default=CAPABILITIES, metavar="NAME")
    options.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2), metavar="N")
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = options.parse_args(arguments)
    found: dict[tuple[str, int], Mapping[str, Row]] = {}
    used_by: dict[str, set[str]] = {}
    for seed in given.seeds:  # all capabilities of a seed first, so that a stopped series can be compared
        for capability in given.capabilities:
            run = Run(given.out / f"{capability}-{seed}")
            measure(run, capability, ["--config", given.config], [*given.set, f"seed={seed}"])
            found[capability, seed], used = rows_of(run)
            used_by.setdefault(capability, set()).update(used)
    lines = [
        *(f"{name}: {' and '.join(sorted(used))}" for name, used in used_by.items()),
        *("", "Mean ± standard deviation over seeds:", "", *means(found, given.capabilities)),
        *("", f"Difference from {given.capabilities[-1]} in points, mean (largest amount) over seeds:", ""),
        *differences(found, given.capabilities),
    ]
    text = "\n".join(lines) + "\n"
    (given.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def measure(run: Run, capability: str, config: Sequence[str], settings: Sequence[str]) -> None:
    """Make the run, or what is missing of it."""
    if any(read_manifest(folder) is not None for folder in run.root.glob("repaired/*")):
        print(f"{run.root.name}: complete", flush=True)
        return
    print(f"{run.root.name}: running", flush=True)
    sets = [word for setting in (*settings, f"name={run.root.name}") for word in ("--set", setting)]
    command = [sys.executable, "-m", "metarepair", "run", *config, "--storage", str(run.root.parent), *sets]
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    subprocess.run(
        [*command, "--quiet"],
        env=environment | ({} if capability == AS_IS else {VARIABLE: capability}),
        stdout=subprocess.DEVNULL,
        check=True,
    )


def rows_of(run: Run) -> tuple[dict[str, Row], set[str]]:
    """The rows of the run's target by method, and the instruction sets that its stages name."""
    (target,) = (path.name for path in run.root.glob("repaired/*"))
    (result,) = load_results(run, [target])
    stages = [read_manifest(path.parent) for path in run.root.rglob("manifest.json")]
    used = {stage.versions["cpu"] for stage in stages if stage is not None and "cpu" in stage.versions}
    return {str(row["method"]): row for row in result["methods"]}, used


def means(found: Found, capabilities: Sequence[str]) -> list[str]:
    """A Markdown table with a row for each method and capability."""
    rows = [
        [
            method_words(method),
            name,
            *(cell(spread(c.value(of[method]) for of in _of(found, name)), c.kind) for c in SHOWN),
        ]
        for method in _methods(found)
        for name in capabilities
    ]
    return aligned(["method", "capability", *(c.title for c in SHOWN)], rows)


def differences(found: Found, capabilities: Sequence[str]) -> list[str]:
    """A Markdown table of each capability against the last one, from pairs of runs with the same seed."""
    *others, base = capabilities

    def cell_of(method: str, name: str, column: Column) -> str:
        pairs = [
            (column.value(one[method]), column.value(two[method]))
            for one, two in zip(_of(found, name), _of(found, base), strict=True)
        ]
        points = [100 * (a - b) for a, b in pairs if a is not None and b is not None]
        return f"{sum(points) / len(points):+.2f} ({max(map(abs, points)):.2f})" if points else "—"

    rows = [
        [method_words(method), name, *(cell_of(method, name, c) for c in SHOWN)]
        for method in _methods(found)
        for name in others
    ]
    return aligned(["method", "capability", *(c.title.removesuffix(" %") for c in SHOWN)], rows)


def _of(found: Found, capability: str) -> list[Mapping[str, Row]]:
    return [rows for (name, _), rows in sorted(found.items()) if name == capability]


def _methods(found: Found) -> list[str]:
    return list(dict.fromkeys(method for rows in found.values() for method in rows))


if __name__ == "__main__":
    sys.exit(main())

"""Measure over several splits what `fix` takes: gain and cost on images that judge, beside those of each candidate.

Each seed divides the photographs anew and repairs again. The last column counts the splits in which a candidate was
taken; the row `taken` is what `fix` handed over, and `best single` is the candidate with the highest mean.
Command: python -m benchmarks.fix_splits --splits 10 --out FOLDER -- OPTIONS OF fix, without --seed and --out
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from metarepair.cli import main as metarepair
from metarepair.config.photographs import NAME

KEPT = 3  # exit code: the deployed weights are kept


def result_of(seed: int, out: Path, options: list[str]) -> dict[str, Any]:
    """The result of one `fix`; a finished one is read, not made again."""
    folder = out / f"split-{seed}"
    code = metarepair(["fix", *options, "--seed", str(seed), "--out", str(folder), "--quiet"])
    if code not in (0, KEPT):
        raise SystemExit(code)
    found: dict[str, Any] = json.loads(
        (folder / "repaired" / NAME / "result.json").read_text(encoding="utf-8")
    )
    return found


def row_of(result: dict[str, Any], method: str) -> tuple[float, float]:
    """Gain on the photographs and change on clean images of a candidate, in points; the first is by `none`'s row."""
    rows = {row["method"]: row for row in result["methods"]}
    row, before = rows[method], rows["none"]
    return 100 * (row["corrupted"] - before["corrupted"]), 100 * (row["clean"] - before["clean"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--splits", type=int, default=10, help="number of seeds")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("options", nargs="+", help="options of fix, after --")
    given = parser.parse_args()
    results = [result_of(seed, given.out, given.options) for seed in range(given.splits)]
    taken = [result["choice"]["method"] for result in results]
    methods = [row["method"] for row in results[0]["methods"]]
    table = {method: np.array([row_of(result, method) for result in results]) for method in methods}
    table["taken"] = np.array([row_of(result, method) for result, method in zip(results, taken, strict=True)])
    print("| candidate | photographs, points | worst | clean, points | worst | taken |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, values in table.items():
        (gain, clean), (least, lowest) = values.mean(0), values.min(0)
        share = f"{taken.count(name)}" if name in methods else ""
        print(f"| {name} | {gain:+.1f} | {least:+.1f} | {clean:+.1f} | {lowest:+.1f} | {share} |")
    best = max(methods, key=lambda name: table[name][:, 0].mean())
    gap = table[best][:, 0].mean() - table["taken"][:, 0].mean()
    print(f"best single: {best}; what was taken is {gap:.2f} points below it on the photographs")


if __name__ == "__main__":
    main()

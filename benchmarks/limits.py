"""Measure whether `limits.max_broken` holds on images that judge, over many splits of the sample.

For each seed, which draws the images that judge, select and learn, the shipped ResNet-8 is fine-tuned for Gaussian
noise (the method `sgd`) twice: inside the limit, and with no limit but a gain. One line per seed, then how often the
limit held on the images that judge, and how much of the gain was left. A finished seed is read, not made again.
Command: python -m benchmarks.limits --splits 50 --out FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from metarepair.config.load import parse_config
from metarepair.runs.layout import run_of
from metarepair.stages.pipeline import Pipeline

MAX_BROKEN = 0.02
TARGET = "gaussian_noise"
FREE = {"min_gain": 0.0}  # chosen on the same images, but with no limit of the cost


def settings_of(seed: int, out: Path, limits: dict[str, float]) -> dict[str, Any]:
    """The settings of one repair."""
    return {
        "name": f"split-{seed}",
        "storage_path": str(out),
        "seed": seed,
        "targets": [TARGET],
        "mining": {"experiences": ["shot_noise"], "severities": [2, 4], "at_most": True},
        "features": {"extractor": "deployed"},
        "repair": {"methods": ["sgd", "none"]},
        "methods": {"sgd": {"epochs": 5}},
        "evaluate": {"others": []},
        "limits": limits,
    }


def repaired(seed: int, out: Path, limits: dict[str, float]) -> dict[str, dict[str, Any]]:
    """The rows of a repair by method."""
    config = parse_config(settings_of(seed, out, limits))
    pipeline = Pipeline(config)
    folder = run_of(config).repaired(TARGET)
    if folder.exists():
        pipeline.restart("repair")
    pipeline.whole()
    rows = json.loads((folder / "result.json").read_text(encoding="utf-8"))["methods"]
    return {row["method"]: row for row in rows}


def split(seed: int, out: Path) -> dict[str, float]:
    """The figures of one seed, on the images that judge."""
    path = out / f"split-{seed}.json"
    if path.is_file():
        found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return found
    free, inside = repaired(seed, out, FREE), repaired(seed, out, {"max_broken": MAX_BROKEN})
    before = inside["none"]["corrupted"]
    row = {
        "seed": seed,
        "weight": inside["sgd"]["selection"]["point"]["weight"],
        "broken": inside["sgd"]["break_rate"],
        "gain": inside["sgd"]["corrupted"] - before,
        "free_broken": free["sgd"]["break_rate"],
        "free_gain": free["sgd"]["corrupted"] - before,
    }
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--splits", type=int, default=50, help="number of seeds")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(given.splits):
        rows.append(split(seed, given.out))
        print(" ".join(f"{key}={value:g}" for key, value in rows[-1].items()), flush=True)
    held = sum(row["broken"] <= MAX_BROKEN for row in rows)
    gain, free = (np.mean([row[key] for row in rows]) for key in ("gain", "free_gain"))
    print(f"max_broken={MAX_BROKEN:g} held in {held} of {len(rows)} splits")
    print(
        f"broken: mean {np.mean([r['broken'] for r in rows]):.2%}, most {max(r['broken'] for r in rows):.2%}"
    )
    print(
        f"gain: {100 * gain:.1f} points inside the limit, {100 * free:.1f} without; {gain / free:.0%} is left"
    )


if __name__ == "__main__":
    main()

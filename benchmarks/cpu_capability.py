"""Measure how much a run's figures move with the processor's instructions, beside how much they move with the seed.

    python -m benchmarks.cpu_capability --out FOLDER

PyTorch's kernels round differently with other instruction sets, so that training ends in other weights. The shipped
sample is run for each instruction set that ATEN_CPU_CAPABILITY can choose here, and each seed. What is finished in
FOLDER is not run again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tasks.storage.paths import read_json

ROOT = Path(__file__).parents[1]
NATIVE = "native"
CAPABILITIES = ("default", "avx2", NATIVE)
COLUMNS = ("d_fail", "whole", "clean", "others")


def run(folder: Path, capability: str, seed: int, settings: list[str]) -> dict[str, Any]:
    """Run the sample, or take the finished run; return the result of its target, with the instruction set used."""
    name = f"{capability}-{seed}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("ATEN_CPU_CAPABILITY", None)
    if capability != NATIVE:
        environment["ATEN_CPU_CAPABILITY"] = capability
    given = ["workers=0", f"name={name}", f"seed={seed}", *settings]
    options = [option for setting in given for option in ("--set", setting)]
    config = str(ROOT / "tune_configs" / "sample.yaml")
    command = [
        sys.executable,
        "-m",
        "metarepair",
        "run",
        "--config",
        config,
        "--storage",
        str(folder),
        *options,
    ]
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    result: dict[str, Any] = read_json(next((folder / name / "repaired").glob("*/result.json")))
    return result

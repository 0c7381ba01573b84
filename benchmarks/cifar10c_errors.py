"""Compare the error rates of a run mined on CIFAR-10's test split with published ones on CIFAR-10-C.

A wrong constant shows here at once: corruptions must rank, and errors must grow with severity, as for other
classifiers trained on clean images. The published errors are RobustBench's row "Standard" (WideResNet-28-10),
which covers 15 of the 19 corruptions.
Command: python -m benchmarks.cifar10c_errors RUN [--json FILE]; RUN: mined by tune_configs/corruptions_cifar10.yaml
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from tasks.corruptions import CORRUPTIONS
from tasks.errors import DataError
from tasks.storage.manifest import Manifest, read_manifest

PUBLISHED = Path(__file__).with_name("cifar10c_reference_errors.json")
Errors = dict[str, NDArray[np.float64]]  # percent at severities 1 to 5, by corruption


def mined_manifests(run: Path) -> dict[str, Manifest]:
    """Return the manifest of every mined target, in the order of the paper's table. Raises DataError if none."""
    found = {name: read_manifest(run / "targets" / name) for name in CORRUPTIONS}
    done = {name: manifest for name, manifest in found.items() if manifest is not None}
    if not done:
        raise DataError(f"{run} has no mined target. Run `metarepair mine` first, and give its folder.")
    return done


def mined_errors(manifests: dict[str, Manifest]) -> Errors:
    """Return the percentage of examined images that the DNN gets wrong, by corruption and severity."""
    errors = {}
    for name, manifest in manifests.items():
        examined, correct = (
            np.array([manifest.facts[key][str(s)] for s in range(1, 6)], float)
            for key in ("examined", "correct")
        )
        errors[name] = 100 * (1 - correct / examined)
    return errors


def published_errors(model: str) -> Errors:
    """A published model's, for the 15 corruptions of CIFAR-10-C."""
    rows = json.loads(PUBLISHED.read_text(encoding="utf-8"))[model]
    return {name: np.array(rows[name]) for name in CORRUPTIONS if name in rows}


def agreement(ours: Errors, published: Errors) -> dict[str, float]:
    """Return Spearman's rank correlations: of the corruptions' means, of all cells, and within each corruption."""
    names = [name for name in published if name in ours]
    both = [np.stack([errors[name] for name in names]) for errors in (ours, published)]
    within = [spearmanr(a, b).statistic for a, b in zip(*both, strict=True)]
    return {
        "spearman_of_means": float(spearmanr(*(errors.mean(axis=1) for errors in both)).statistic),
        "spearman_of_cells": float(spearmanr(*(errors.ravel() for errors in both)).statistic),
        "spearman_within_mean": float(np.mean(within)),
        "spearman_within_min": float(np.min(within)),
    }


def table(ours: Errors, published: Errors, manifests: dict[str, Manifest]) -> str:
    """Return a Markdown table of our and the published errors by severity, and the time to corrupt an image."""
    lines = [
        "| corruption | ours, severities 1 to 5 | mean | published | mean | corrupting, µs per image |",
        "| --- | --- | ---: | --- | ---: | ---: |",
    ]
    for name, errors in ours.items():
        facts = manifests[name].facts
        micros = 1e6 * facts["seconds"]["corrupt"] / sum(facts["examined"].values())
        row = [name, _cells(errors), f"{errors.mean():.1f}"]
        row += [_cells(published[name]), f"{published[name].mean():.1f}"] if name in published else ["", ""]
        lines.append("| " + " | ".join([*row, f"{micros:.1f}"]) + " |")
    return "\n".join(lines)


def _cells(errors: NDArray[np.float64]) -> str:
    return " ".join(f"{e:.1f}" for e in errors)


def main() -> None:
    """Print the table and the agreement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a mined run")
    parser.add_argument("--model", default="Standard", help="a row of the published errors (Standard)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    given = parser.parse_args()
    manifests = mined_manifests(given.run)
    ours, published = mined_errors(manifests), published_errors(given.model)
    figures = agreement(ours, published)
    seconds = {
        key: sum(m.facts["seconds"][key] for m in manifests.values()) for key in ("corrupt", "classify")
    }
    examined = sum(sum(m.facts["examined"].values()) for m in manifests.values())
    print(table(ours, published, manifests), end="\n\n")
    print("\n".join(f"{key:24s} {value:.3f}" for key, value in figures.items()))
    print(
        f"{examined:,} images; one worker corrupts {examined / seconds['corrupt']:,.0f} and classifies "
        f"{examined / seconds['classify']:,.0f} per second"
    )
    if given.json:
        content = {**figures, "ours": {n: e.tolist() for n, e in ours.items()}, "seconds": seconds}
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

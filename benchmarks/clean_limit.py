"""Measure what `limits.max_clean_drop` costs on clean images that it was not chosen by, over many draws.

Takes a finished run of `fix`'s methods without limits. Each draw takes some photographs that judge and some clean test
images of CIFAR-10 to select by; all repairs, at all weights of the search, are known on all of them. The best point
inside the limit is taken as `fix` takes it, and is judged on the images that were not drawn.
Command: METAREPAIR_DATA=FOLDER python -m benchmarks.clean_limit --config SETTINGS.yaml --draws 200
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metarepair.adaptation.accuracy import predict
from metarepair.adaptation.choice import interpolated
from metarepair.adaptation.meta_test import Step, start_of
from metarepair.config.load import load_config
from metarepair.config.photographs import NAME
from metarepair.data.clean_images import CleanImages
from metarepair.models.build import DeployedModel
from metarepair.repairs.limits import WEIGHTS
from metarepair.repairs.saved import load_repaired
from metarepair.runs.layout import run_of
from metarepair.stages.pipeline import Pipeline
from tasks.datasets import load_dataset
from tasks.records import Ints
from tasks.splits import JUDGE

# N images

MOST_CLEAN = 4000
Rights = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Known:
    """Which images a DNN classifies correctly: photographs, and clean ones."""

    photographs_N: Rights
    clean_N: Rights


def known_points(config_path: Path) -> tuple[Known, dict[tuple[str, float], Known]]:
    """The deployed DNN, and each repair of the run at each weight of the search."""
    config = load_config(config_path, [])
    run, here = run_of(config), Pipeline(config).here
    deployed = here.deployed
    source, test = here.environment("test", NAME), load_dataset("cifar10", "test")
    judging = np.flatnonzero(source.parts_N == JUDGE)
    rows = np.sort(np.random.default_rng(0).permutation(len(test.labels_N))[:MOST_CLEAN])
    photographs = CleanImages(
        images_NHWC=source.images(judging, source.severities[0]), labels_N=source.labels_N[judging]
    )
    clean = CleanImages(images_NHWC=test.images(rows), labels_N=test.labels_N[rows])
    before = start_of(deployed)

    def known(step: Step) -> Known:
        def right(images: CleanImages) -> Rights:
            found: Rights = (
                predict(deployed, step.parameters, step.buffers, images).argmax(1).numpy() == images.labels_N
            )
            return found

        return Known(photographs_N=right(photographs), clean_N=right(clean))

    points = {}
    for method in config.repair.methods:
        folder = run.repaired(NAME) / method / str(config.repair.seeds[0])
        end = _end(replace(deployed, module=load_repaired(folder, method, deployed)))
        for weight in WEIGHTS:
            points[method, weight] = known(interpolated(before, end, weight))
    return known(_end(deployed)), points


def _end(deployed: DeployedModel) -> Step:
    state = start_of(deployed)
    return Step(episode=0, slot=0, parameters=state.parameters, buffers=state.buffers, images_seen=0)


def taken(
    before: Known, points: dict[tuple[str, float], Known], limit: float, photographs: Ints, clean: Ints
) -> Known:
    """The best point inside the limit on the drawn images; the deployed DNN if there is none."""
    best, most = before, (0.0, 0.0)
    for point in points.values():
        gain = _change(before.photographs_N, point.photographs_N, photographs)
        cost = _change(before.clean_N, point.clean_N, clean)
        if gain > 0 and cost >= -limit - 1e-9 and (gain, cost) > most:
            best, most = point, (gain, cost)
    return best


def _change(before_N: Rights, after_N: Rights, rows: Ints) -> float:
    return float(after_N[rows].mean() - before_N[rows].mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="settings of the finished run")
    parser.add_argument("--draws", type=int, default=200, help="number of draws")
    parser.add_argument("--photographs", type=int, default=160, help="photographs that select, in a draw")
    given = parser.parse_args()
    before, points = known_points(given.config)
    print("| limit | clean images that select | photographs | clean | a tenth of the draws lose more than |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for limit in (0.005, 0.01):
        for size in (250, 500, 1000):
            generator, found = np.random.default_rng(0), []
            for _ in range(given.draws):
                photographs, clean = (
                    generator.permutation(len(right_N)) for right_N in (before.photographs_N, before.clean_N)
                )
                point = taken(before, points, limit, photographs[: given.photographs], clean[:size])
                found.append(
                    (
                        _change(before.photographs_N, point.photographs_N, photographs[given.photographs :]),
                        _change(before.clean_N, point.clean_N, clean[size:]),
                    )
                )
            (gain, cost), worst = 100 * np.mean(found, 0), 100 * np.quantile([c for _, c in found], 0.1)
            print(f"| {100 * limit:.1f} | {size} | {gain:+.1f} | {cost:+.2f} | {worst:+.1f} |", flush=True)


if __name__ == "__main__":
    main()

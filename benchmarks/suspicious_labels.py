"""Measure how many of the labels that were made wrong come first in the ranking of suspicious labels.

Of test images under a corruption, 5% get a random other label, before the failures of the shipped ResNet-8 are
collected. N of these wrong labels are then among D_collect's. The table shows the share of wrong labels among the first
N of the ranking, beside the share at random, which is N of all failures. Aim: at least twice the share at random in
every corruption, as the mean over ten seeds.

A seed draws the images (800 of the sample's 2,000 test images, each at one random severity) and the labels. They are
ranked as `metarepair diagnose` ranks them: over all images, right ones too, with 1,000 clean images.
Command: python -m benchmarks.suspicious_labels --seeds 10 --corruptions motion_blur,fog,gaussian_noise,jpeg_compression
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metarepair.diagnosis.labels import RankedLabels, ranked_labels
from metarepair.diagnosis.seen import deployed_extractor
from metarepair.features.extractors import FeatureExtractor
from metarepair.models.build import DeployedModel, load_deployed
from tasks.corruptions import resolve
from tasks.datasets import ArrayDataset, dataset_info, load_dataset
from tasks.environments import corrupted_images
from tasks.errors import UserError
from tasks.keys import keyed_generator
from tasks.records import Ints, Pixels

# N images, D features

IMAGES, CLEAN, BATCH = 800, 1000, 500
WRONG = 0.05  # share of the labels
DATA = "cifar10_sample"


@dataclass(frozen=True, kw_only=True)
class Found:
    """Shares of wrong labels among failures: at random, among the first in the ranking, and by neighbours alone.

    failures, wrong: numbers of failures, and of wrong labels among them. seconds: of the ranking.
    """

    failures: int
    wrong: int
    first: float
    neighbours: float
    seconds: float

    @property
    def random(self) -> float:
        """The share of wrong labels among all failures."""
        return self.wrong / self.failures


class Bench:
    """The shipped ResNet-8, its features, the test images, and features of clean training images."""

    def __init__(self) -> None:
        info = dataset_info(DATA)
        self.deployed: DeployedModel = load_deployed("resnet8_cifar", "shipped:resnet8_cifar10", info)
        self.extractor: FeatureExtractor = deployed_extractor(self.deployed)
        self.test: ArrayDataset = load_dataset(DATA, "test")
        train = load_dataset(DATA, "train")
        rows = np.arange(CLEAN)
        self.clean = self.features(train.images(rows)), train.labels_N[rows]

    def features(self, images_NHWC: Pixels) -> np.ndarray:
        """The deployed DNN's features, [N, D]."""
        starts = range(0, len(images_NHWC), BATCH)
        return np.concatenate([self.extractor(images_NHWC[start : start + BATCH]) for start in starts])

    def measure(self, corruption: str, seed: int) -> Found:
        """Plant wrong labels, rank the labels of the failures, and count what comes first."""
        generator = keyed_generator("suspicious labels", seed)
        rows = generator.permutation(len(self.test.labels_N))[:IMAGES]
        images_NHWC = self._photographs(corruption, rows, generator.integers(1, 6, size=IMAGES), seed)
        labels_N, wrong_N = planted(self.test.labels_N[rows], generator, len(self.test.classes))
        failed_N = self.deployed.logits(images_NHWC).argmax(1).numpy() != labels_N
        features_ND = self.features(images_NHWC)
        start = time.perf_counter()
        ranked = ranked_labels(
            features_ND, labels_N, num_classes=len(self.test.classes), seed=seed, clean=self.clean
        )
        seconds = time.perf_counter() - start
        return _found(ranked, np.flatnonzero(failed_N), wrong_N, seconds)

    def _photographs(self, corruption: str, rows: Ints, severities_N: Ints, seed: int) -> Pixels:
        images_NHWC = np.empty((len(rows), *self.test.image_shape), np.uint8)
        for severity in range(1, 6):
            chosen = severities_N == severity
            images_NHWC[chosen] = corrupted_images(
                self.test, rows[chosen], corruption=corruption, severity=severity, seed=seed
            )
        return images_NHWC


def planted(labels_N: Ints, generator: np.random.Generator, num_classes: int) -> tuple[Ints, np.ndarray]:
    """Give WRONG of the images a random other label; return all labels, and which are wrong."""
    wrong_N = np.zeros(len(labels_N), dtype=bool)
    wrong_N[generator.permutation(len(labels_N))[: round(WRONG * len(labels_N))]] = True
    shifts_N = np.where(wrong_N, generator.integers(1, num_classes, size=len(labels_N)), 0)
    return (labels_N + shifts_N) % num_classes, wrong_N


def _found(ranked: RankedLabels, failures: Ints, wrong_N: np.ndarray, seconds: float) -> Found:
    count = int(wrong_N[failures].sum())

    def share(order: Ints) -> float:
        return float(wrong_N[order[:count]].mean())

    by_neighbours = failures[np.argsort(-ranked.neighbours_N[failures], kind="stable")]
    return Found(
        failures=len(failures),
        wrong=count,
        first=share(ranked.order(failures)),
        neighbours=share(by_neighbours),
        seconds=seconds,
    )


HEADER = (
    "corruption",
    "failures",
    "wrong",
    "at random %",
    "first N %",
    "worst seed %",
    "times random",
    "worst seed",
    "neighbours alone %",
    "seconds",
)


def table(found: Mapping[str, Sequence[Found]]) -> str:
    """A Markdown table of means over seeds, and of the worst seed."""
    lines = ["| " + " | ".join(HEADER) + " |", "| --- |" + " ---: |" * (len(HEADER) - 1)]
    for corruption, seeds in found.items():
        times = [one.first / one.random for one in seeds]
        means = {
            key: np.mean([getattr(one, key) for one in seeds]) for key in (*Found.__annotations__, "random")
        }
        cells = [
            corruption,
            f"{means['failures']:.0f}",
            f"{means['wrong']:.1f}",
            f"{100 * means['random']:.1f}",
            f"{100 * means['first']:.1f}",
            f"{100 * min(one.first for one in seeds):.1f}",
            f"{np.mean(times):.2f}",
            f"{min(times):.2f}",
            f"{100 * means['neighbours']:.1f}",
            f"{means['seconds']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a corruption's mean is below twice the share at random."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--corruptions", default="motion_blur,fog,gaussian_noise,jpeg_compression")
    given = parser.parse_args(arguments)
    try:
        names = [resolve(name) for name in given.corruptions.split(",")]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    bench, found = Bench(), {}
    for name in names:
        found[name] = [bench.measure(name, seed) for seed in range(given.seeds)]
        print(f"{name}: {given.seeds} seeds done", file=sys.stderr, flush=True)
    print(table(found))
    worst = min(float(np.mean([one.first / one.random for one in seeds])) for seeds in found.values())
    return 0 if worst >= 2 else 1


if __name__ == "__main__":
    sys.exit(main())

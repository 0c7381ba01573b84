"""Find the known environments that photographs are most like: corruptions of clean images, or those of a kit.

An environment is its failures, as everywhere else (paper Eq. 7): the Fréchet distance between the features of the
photographs' failures and of an environment's. Few failures are enough to see which are near, but the distance falls
with their number, so all environments are cut to one number.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metarepair.features.extractors import FeatureExtractor
from metarepair.models.build import DeployedModel
from metarepair.runs.progress import Progress
from tasks.distances import Moments, bootstrap_interval, frechet_distance, moments
from tasks.environments import Environment, category_of
from tasks.errors import DataError
from tasks.keys import keyed_generator
from tasks.records import Ints

# N images, D features

MOST_IMAGES, FEWEST_IMAGES = 200, 20  # clean images of each corruption
FAILURES = 100  # of each environment that are looked for
FEWEST = 20  # failures, for a distance
RESAMPLES = 200
SECONDS = 60.0  # that all corruptions may take here; fewer clean images are used where they would take longer
TURNS = 2  # severities that an image is shown at, on average
_PROBED = 4  # images of each corruption, by which that is measured
Features = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Near:
    """A known environment and its distance from the photographs; low, high: 95% interval, None for a kit's moments.

    failures: those of the environment that were used.
    """

    name: str
    category: str
    distance: float
    low: float | None
    high: float | None
    failures: int


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The known environments, the nearest first.

    Attributes:
        failures: those of the photographs that were used; 0 if they are too few for a distance.
        images: clean images that each corruption was applied to; 0 with a kit.
        found: environments with a distance.
        too_few: the number of failures of those that have too few.
    """

    failures: int
    images: int
    found: list[Near]
    too_few: dict[str, int]


def nearest_corruptions(
    failures_ND: Features,
    sources: Sequence[Environment],
    rows: Ints,
    deployed: DeployedModel,
    extractor: FeatureExtractor,
    *,
    seed: int,
) -> Nearest:
    """Apply corruptions to clean images (`rows`), and compare their failures with those of the photographs."""
    if len(failures_ND) < FEWEST:
        return Nearest(failures=0, images=0, found=[], too_few={})
    order = keyed_generator("diagnosed clean images", seed).permutation(len(rows))
    mine = _Mining(deployed, extractor, seed)
    rows = rows[order[: _affordable(mine, sources, rows[order])]]
    mined, progress = {}, Progress("corruptions", len(sources), "corruptions")
    for source in sources:
        mined[source.name] = mine.failures(source, rows)
        progress.advance(note=f"{source.name}: {len(mined[source.name])} failures")
    return _compared(failures_ND, mined, images=len(rows), seed=seed)


@dataclass(frozen=True)
class _Mining:
    deployed: DeployedModel
    extractor: FeatureExtractor
    seed: int

    def failures(self, source: Environment, rows: Ints) -> Features:
        """Features of at most FAILURES failures, drawn from those that were found.

        Each image is shown at one severity, so that all severities have equally many. While there are too few failures,
        each is shown at the next one.
        """
        found, severities = np.empty((0, self.extractor.dim), np.float32), source.severities
        for turn in range(len(severities)):
            if len(found) >= FAILURES:
                break
            places = (np.arange(len(rows)) + turn) % len(severities)
            shown = [self._wrong(source, rows[places == n], s) for n, s in enumerate(severities)]
            found = np.concatenate([found, *shown])
        order = keyed_generator("diagnosed failures", self.seed, source.name).permutation(len(found))
        return found[order[:FAILURES]]

    def _wrong(self, source: Environment, rows: Ints, severity: int) -> Features:
        """The features of those images that the DNN gets wrong."""
        images = source.images(rows, severity) if len(rows) else np.empty((0, *source.image_shape), np.uint8)
        wrong = self.deployed.logits(images).argmax(1).numpy() != source.labels_N[rows]
        return self.extractor(images[wrong]) if wrong.any() else np.empty((0, self.extractor.dim), np.float32)


def _affordable(mine: _Mining, sources: Sequence[Environment], rows: Ints) -> int:
    """The number of clean images that all corruptions are applied to within SECONDS, from a measurement of a few."""
    started, few = time.monotonic(), rows[:_PROBED]
    progress = Progress("measure the speed", len(sources), "corruptions")
    for source in sources:
        images = source.images(few, source.severities[-1])
        mine.deployed.logits(images)
        mine.extractor(images)
        progress.advance()
    each_s = max((time.monotonic() - started) / len(few), 1e-9)
    return min(max(int(SECONDS / (TURNS * each_s)), FEWEST_IMAGES), MOST_IMAGES, len(rows))


def _compared(failures_ND: Features, mined: Mapping[str, Features], *, images: int, seed: int) -> Nearest:
    wanted = min(FAILURES, len(failures_ND))
    least = max(FEWEST, wanted // 2)
    enough = {name: features for name, features in mined.items() if len(features) >= least}
    count = min([wanted, *map(len, enough.values())])
    chosen = keyed_generator("diagnosed failures", seed).permutation(len(failures_ND))[:count]
    ours_ND = failures_ND[chosen]
    found = [_near(ours_ND, name, features[:count], seed) for name, features in enough.items()]
    return Nearest(
        failures=count,
        images=images,
        found=sorted(found, key=lambda near: near.distance),
        too_few={name: len(features) for name, features in mined.items() if name not in enough},
    )


def _near(ours_ND: Features, name: str, theirs_ND: Features, seed: int) -> Near:
    interval = bootstrap_interval(theirs_ND, ours_ND, seed=seed, resamples=RESAMPLES)
    return Near(
        name=name,
        category=category_of(name),
        distance=interval.distance,
        low=interval.low,
        high=interval.high,
        failures=len(theirs_ND),
    )


def nearest_in_kit(failures_ND: Features, known: Mapping[str, Moments]) -> Nearest:
    """Compare the photographs' failures with the moments of a kit's environments, which may be of more failures."""
    if len(failures_ND) < FEWEST:
        return Nearest(failures=0, images=0, found=[], too_few={})
    ours = moments(failures_ND)
    for name, theirs in known.items():
        if len(theirs.mean_D) != len(ours.mean_D):
            raise DataError(
                f"the kit's features of {name} have {len(theirs.mean_D)} dimensions, the DNN's {len(ours.mean_D)}. "
                "Give the kit of this model, with features.extractor: deployed."
            )
    found = [
        Near(
            name=name,
            category=category_of(name),
            distance=frechet_distance(theirs, ours),
            low=None,
            high=None,
            failures=theirs.count,
        )
        for name, theirs in known.items()
    ]
    return Nearest(
        failures=len(failures_ND), images=0, found=sorted(found, key=lambda near: near.distance), too_few={}
    )

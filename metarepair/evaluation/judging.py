"""Describe by which images repairs were judged, and how often some of them have judged before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from metarepair.config.run import Config
from metarepair.runs.layout import Run
from metarepair.runs.progress import times
from tasks.environments import Environment, UserImages
from tasks.splits import JUDGE
from tasks.splits.digests import Digests
from tasks.storage.paths import read_json_lines

Protocol = Literal["set aside", "paper", "own images"]
SAMPLE = 128  # digests of a set of images that are kept
CHOSEN = (
    " If a repair or a setting was chosen by earlier results, these figures are too good: judge the final choice once, "
    "on images that have not judged before."
)


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How repairs of a target were judged.

    protocol: `set aside`: by test images that were set aside before mining; `paper`: D_fail is every failure that was
    not collected, and the other columns leave out the images of D_collect; `own images`: by the user's own images, set
    aside before anything else. images: images of the environment, each in all severities. clean_images: clean test
    images. fraction: the share of the clean test images that was set aside; None if none were.
    """

    protocol: Protocol
    images: int
    clean_images: int
    fraction: float | None


def judging_of(config: Config, source: Environment, *, images: int, clean_images: int) -> Judging:
    """Describe the judging of one target by `images` images of its environment."""
    set_aside = bool((source.parts_N == JUDGE).any())
    users = isinstance(source, UserImages)
    return Judging(
        protocol="own images" if users else "set aside" if set_aside else "paper",
        images=images,
        clean_images=clean_images,
        fraction=config.mining.judge_fraction,
    )


def sample_of(digests_N: Digests) -> list[str]:
    """The smallest of the digests [N] of some images, by which a later reading of the same images is recognised.

    Two sets of images that share one with a small digest share it in their samples: the more they share, the surer
    (bottom-k sketches; Broder 1997). Up to SAMPLE images are compared in full.
    """
    return [f"{digest:016x}" for digest in np.unique(digests_N)[:SAMPLE]]


def readings(run: Run, target: str) -> list[str]:
    """Say how often the images that judge have judged repairs, with a warning from the second time on."""
    count = count_readings(run, target)
    if not count:
        return []
    line = f"In all runs of this storage folder, repairs were judged by these images, or some of them, {times(count)}."
    return [line + (CHOSEN if count > 1 else "")]


def readings_of_seeds(runs: Sequence[Run], target: str) -> list[str]:
    """As `readings`, for a comparison whose seeds have these runs. What another seed of it judged is not counted."""
    own = (
        "Each seed has a run of its own, with its own D_fail, its own images to judge by and its own log of readings "
        "(seeds/SEED/d_fail_reads.jsonl)."
    )
    most = max(count_readings(run, target, without=[r for r in runs if r != run]) for run in runs)
    if not most:
        return [own]
    line = (
        "In all runs of this storage folder, apart from the other seeds of this comparison, repairs were judged by the "
        f"images of one seed, or some of them, {'once' if most == 1 else f'up to {most} times'}."
    )
    return [own, line + (CHOSEN if most > 1 else "")]


def count_readings(run: Run, target: str, *, without: Sequence[Run] = ()) -> int:
    """Count how often the images that judged a target last have judged repairs, in all runs of the storage folder.

    A single digest in common is enough. Images that judged as those of another environment count as well: of a run, the
    judgements of the one target for which they judged most often. So targets that show each other's images, as others
    of one evaluation, count once together. 0 if the log of this run does not have the target's images. `without`: runs
    that are not counted.
    """
    lines = _judgements(run)
    samples = [line.images[target] for line in lines if line.target == target and target in line.images]
    if not samples:
        return 0
    count = 0
    for other in (one for one in run.beside if one not in without):
        seen = Counter(line.target for line in _judgements(other) if line.shows(samples[-1]))
        count += max(seen.values(), default=0)
    return count


@dataclass(frozen=True, kw_only=True)
class _Judgement:
    """One judgement of a run's log: its target, and by the environment's name a sample of the images that judged."""

    target: str
    images: Mapping[str, frozenset[str]]

    def shows(self, sample: frozenset[str]) -> bool:
        return any(not sample.isdisjoint(other) for other in self.images.values())


def _judgements(run: Run) -> list[_Judgement]:
    """The judgements in a run's log; lines and samples that are damaged or of earlier versions are left out."""
    found = []
    for line in read_json_lines(run.d_fail_log)[0]:
        images = line.get("images")
        if line.get("judged") and isinstance(images, dict):
            samples = {n: frozenset(sample) for n, sample in images.items() if _is_sample(sample)}
            found.append(_Judgement(target=str(line.get("target")), images=samples))
    return found


def _is_sample(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(digest, str) for digest in value)

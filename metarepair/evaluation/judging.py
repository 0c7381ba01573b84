"""Describe by which images repairs were judged, and how often the same images have judged before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from metarepair.config.run import Config
from metarepair.evaluation.predictions import Predictions
from metarepair.runs.layout import Run
from tasks.environments import JUDGE, Environment, UserImages
from tasks.storage.paths import find, read_json_lines

Protocol = Literal["set aside", "paper", "own images"]


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How repairs of a target were judged.

    protocol: `set aside`: by test images that were set aside before mining; `paper`: D_fail is every failure that was
    not collected, and the other columns leave out the images of D_collect; `own images`: by the user's own images, set
    aside before anything else. images: images of the environment, each in all severities. clean_images: clean test
    images. fraction: the share of the test images that was set aside; None if none were. data: a digest of the images
    of the environment.
    """

    protocol: Protocol
    images: int
    clean_images: int
    fraction: float | None
    data: str


def judging_of(
    config: Config, source: Environment, *, images: int, clean_images: int, shown: Mapping[int, Predictions]
) -> Judging:
    """Describe the judging of one target by `images` images of its environment, `shown` by severity."""
    users = isinstance(source, UserImages)
    set_aside = bool((source.parts_N == JUDGE).any())
    digest = hashlib.blake2b(digest_size=12)
    for severity, predictions in sorted(shown.items()):
        digest.update(repr(severity).encode() + predictions.digests_N.tobytes())
    return Judging(
        protocol="own images" if users else "set aside" if set_aside else "paper",
        images=images,
        clean_images=clean_images,
        fraction=config.mining.judge_fraction,
        data=digest.hexdigest(),
    )


def count_readings(run: Run, data: str) -> int:
    """Count how often the images with this digest have judged repairs, in all runs of the storage folder."""
    lines = (
        line for log in find(run.root.parent, f"*/{run.d_fail_log.name}") for line in read_json_lines(log)[0]
    )
    return sum(line.get("data") == data and bool(line.get("judged")) for line in lines)

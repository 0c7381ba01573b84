"""The inputs of the meta-training for one target: experiences, their confidence, and the target's D_collect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.datasets import Split
from tasks.sampling.confidence import Confidence
from tasks.storage.paths import Place


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """Where the data for learning and for selection lie. The D_fail of `target` is not among them.

    experiences: the mined folder of each experience in `confidence`. collect: a folder with the target's
    `collect.arrow` and a manifest that lists it. split: the split that it was mined from. images: the folder of the
    user's own environments, if the run has any. joint: the folder of joint training, for `train.start: joint`.
    """

    target: str
    experiences: Mapping[str, Place]
    collect: Place
    split: Split
    confidence: Confidence
    images: Place
    joint: Place

"""The inputs of a meta-training: experiences, their confidence, and the D_collect of its target."""

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
    `collect.arrow` and a manifest that lists it. split: the split that it was mined from. start: the
    folder of joint training, for `train.start: joint`, or of the θ_meta of a kit. images: the folder of a search's
    copies of the user's own environments; None for those of the run. of_kit: whether the experiences are those of a
    kit, of whose images only the failures are there.

    A training for all targets (`train.shared`) has no `collect`.
    """

    target: str
    experiences: Mapping[str, Place]
    collect: Place | None
    split: Split
    confidence: Confidence
    start: Place
    images: Place | None = None
    of_kit: bool = False

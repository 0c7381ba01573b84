"""What the meta-training for one environment reads: experiences, their confidence, and collected failures alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.datasets import Split
from tasks.sampling.confidence import Confidence
from tasks.storage.paths import Place


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """Places of what is learned from and selected by; the D_fail of `target` is not among them.

    experiences: the mined folder of each of confidence's experiences. collect: a folder with the target's
    `collect.arrow` and a manifest that promises it; split: the split that it was mined from.
    """

    target: str
    experiences: Mapping[str, Place]
    collect: Place
    split: Split
    confidence: Confidence

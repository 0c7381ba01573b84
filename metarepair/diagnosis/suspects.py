"""Find the photographs whose label is suspicious, among those that the DNN gets wrong.

Labels are ranked over all photographs that may be seen, right ones too, beside clean images to learn from. Only
failures are listed: what the DNN gets right is not learned from, so a wrong label does no harm there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metarepair.data.clean_images import CleanImages
from metarepair.diagnosis.labels import STEPS, RankedLabels, ranked_labels
from metarepair.diagnosis.seen import (
    Answers,
    Seen,
    answers,
    deployed_extractor,
    features_of,
    seen_of,
)
from metarepair.models.build import DeployedModel
from metarepair.runs.progress import Progress
from tasks.environments import UserImages
from tasks.keys import keyed_generator
from tasks.records import Ints

# N photographs that may be seen, F failures among them, D features

CLEAN = 1000  # clean images that are compared with, at most


@dataclass(frozen=True, kw_only=True, eq=False)
class Suspects:
    """The photographs, and the failures among them with the most suspicious label first.

    Attributes:
        seen: the N photographs.
        found: the DNN's answers to them.
        features_ND: their features.
        ranked: how suspicious their labels are.
        failures_F: places of the failures among them, in the order of the ranking.
    """

    seen: Seen
    found: Answers
    features_ND: NDArray[np.float32]
    ranked: RankedLabels
    failures_F: Ints

    def image_ids(self, first: int) -> Ints:
        """The ids, in their environment, of the failures with the `first` most suspicious labels."""
        ids: Ints = self.seen.source.image_ids_N[self.seen.rows_N[self.failures_F[:first]]]
        return ids


def find_suspects(source: UserImages, clean: CleanImages, deployed: DeployedModel, *, seed: int) -> Suspects:
    """Classify the photographs that may be seen, and rank the labels of the failures among them.

    The same photographs, clean images, DNN and seed give the same order. Raises DataError if the photographs are of one
    group and there is no clean image, ConfigError if the DNN's features cannot be found.
    """
    seen, extractor = seen_of(source), deployed_extractor(deployed)
    found = answers(deployed, seen.images_NHWC, "photographs")
    features_ND = features_of(extractor, seen.images_NHWC, "features of photographs")
    beside = clean.take(_beside(clean, seed))
    clean_features_MD = features_of(extractor, beside.images_NHWC, "features of clean images")
    progress = Progress("labels", STEPS, "steps")
    ranked = ranked_labels(
        features_ND,
        seen.labels_N,
        num_classes=deployed.num_classes,
        seed=seed,
        groups_N=seen.groups_N,
        clean=(clean_features_MD, beside.labels_N),
        on_step=progress.advance,
    )
    failures_F = ranked.order(np.flatnonzero(~found.right(seen.labels_N)))
    return Suspects(seen=seen, found=found, features_ND=features_ND, ranked=ranked, failures_F=failures_F)


def rows_to_learn(clean: CleanImages) -> Ints:
    """The rows of the clean images that do not select."""
    rows: Ints = np.setdiff1d(np.arange(len(clean)), clean.held_out_rows)
    return rows


def _beside(clean: CleanImages, seed: int) -> Ints:
    rows = rows_to_learn(clean)
    return np.sort(rows[keyed_generator("clean beside labels", seed).permutation(len(rows))[:CLEAN]])

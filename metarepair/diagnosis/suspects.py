"""Find the photographs whose label is suspicious, among those that the DNN gets wrong.

Labels are ranked over all photographs that may be seen, right ones too, beside clean images to learn from. Only
failures are listed: what the DNN gets right is not learned from, so a wrong label does no harm there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metarepair.data.clean_images import CleanImages
from metarepair.diagnosis.labels import STEPS, RankedLabels, ranked_labels
from metarepair.diagnosis.seen import Answers, Seen, features_of
from metarepair.features.extractors import FeatureExtractor
from metarepair.runs.progress import Progress
from tasks.keys import keyed_generator
from tasks.records import Ints

# N photographs that may be seen, F failures among them, D features

CLEAN = 1000  # clean images that are compared with, at most


@dataclass(frozen=True, kw_only=True, eq=False)
class Suspects:
    """The failures among the photographs, the most suspicious label first.

    Attributes:
        ranked: of all N photographs.
        failures_F: places of the failures among them, in the order of the ranking.
    """

    ranked: RankedLabels
    failures_F: Ints


def find_suspects(
    seen: Seen,
    found: Answers,
    features_ND: np.ndarray,
    extractor: FeatureExtractor,
    clean: CleanImages,
    *,
    num_classes: int,
    seed: int,
) -> Suspects:
    """Rank the labels of the failures. found, features_ND: the DNN's answers to and features of the photographs.

    Raises DataError if the photographs are of one group and there is no clean image.
    """
    rows = keyed_generator("clean beside labels", seed).permutation(len(clean))[:CLEAN]
    chosen = clean.take(np.sort(rows))
    beside = features_of(extractor, chosen.images_NHWC, "features of clean images"), chosen.labels_N
    progress = Progress("labels", STEPS, "steps")
    ranked = ranked_labels(
        features_ND,
        seen.labels_N,
        num_classes=num_classes,
        seed=seed,
        groups_N=seen.groups_N,
        clean=beside,
        on_step=progress.advance,
    )
    return Suspects(ranked=ranked, failures_F=ranked.order(np.flatnonzero(~found.right(seen.labels_N))))


def suspicious_ids(seen: Seen, suspects: Suspects, first: int) -> Ints:
    """The ids, in their environment, of the photographs with the `first` most suspicious labels."""
    ids: Ints = seen.source.image_ids_N[seen.rows_N[suspects.failures_F[:first]]]
    return ids

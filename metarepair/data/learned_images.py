"""The images of an experience, right and wrong, that a training may learn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metarepair.data.workspace import Surroundings
from tasks.environments import CorruptedImages, Environment, UserImages
from tasks.experiences.pixels import rows_of_images
from tasks.keys import keyed_generator
from tasks.records import Experience, Failures, Ints, Pixels
from tasks.splits import LEARN, SELECT


@dataclass(frozen=True, kw_only=True)
class LearnedImages:
    """An experience, its rows that are learned from, and those among which its failures were looked for (None: all)."""

    source: Environment
    rows_N: Ints
    mined_N: Ints | None = None

    def drawn(self, count: int, severity: int, generator: np.random.Generator) -> tuple[Pixels, Ints]:
        """Draw `count` images of one severity, with replacement: pixels [B, H, W, 3] uint8, labels [B]."""
        rows_B = self.rows_N[generator.integers(len(self.rows_N), size=count)]
        return self.source.images(rows_B, severity), self.source.labels_N[rows_B]

    def right(self, experience: Experience, severity: int) -> LearnedImages:
        """Those that the deployed DNN got right when the experience was mined at this severity."""
        failed = [
            side.image_ids_N[side.severities_N == severity] for side in (experience.collect, experience.fail)
        ]
        rows_N = self.rows_N if self.mined_N is None else np.intersect1d(self.rows_N, self.mined_N)
        wrong_N = np.isin(self.source.image_ids_N[rows_N], np.concatenate(failed))
        return LearnedImages(source=self.source, rows_N=rows_N[~wrong_N], mined_N=self.mined_N)


def collected(failures: Failures, learned: LearnedImages) -> Failures:
    """The failures of an experience that may be learned from: none of a clean image by which repairs are selected."""
    rows_N = rows_of_images(learned.source.image_ids_N, failures.image_ids_N)
    return failures.view(np.flatnonzero(np.isin(rows_N, learned.rows_N)))


def learned_images(here: Surroundings, name: str) -> LearnedImages:
    """An experience with the rows to learn from, without the clean images by which repairs are selected."""
    source, mined_N = here.environment("train", name), mined_rows(here, name)
    if isinstance(source, UserImages):
        return LearnedImages(source=source, rows_N=np.flatnonzero(source.learned_N), mined_N=mined_N)
    assert isinstance(source, CorruptedImages)
    mask = source.parts_N == LEARN
    if source.data.split == "train":
        mask[here.clean().held_out_rows] = False
    rows_N: Ints = np.flatnonzero(mask)
    return LearnedImages(source=source, rows_N=rows_N, mined_N=mined_N)


def mined_rows(here: Surroundings, name: str) -> Ints:
    """The rows of an experience that are mined, in ascending order: at most `mining.images` of a corruption's."""
    source, most = here.environment("train", name), here.config.mining.images
    rows_N: Ints = np.flatnonzero((source.parts_N == LEARN) | (source.parts_N == SELECT))
    if most is None or isinstance(source, UserImages) or most >= len(rows_N):
        return rows_N
    generator = keyed_generator("mined-images", here.config.seed)
    return np.sort(generator.choice(rows_N, size=most, replace=False))

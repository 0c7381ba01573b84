"""Draws the tensors of meta-training tasks, and divides an episode's tasks among the workers.

Source: paper Algorithm 1, lines 4-6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from metarepair.config.run import Config
from metarepair.data.batches import counts_of, failure_batch, image_batch, support_batch
from metarepair.data.clean_images import CleanImages
from metarepair.data.learned_images import LearnedImages
from metarepair.engine.types import Batch, TaskBatch
from metarepair.models.build import DeployedModel
from tasks.errors import DataError
from tasks.keys import keyed_generator
from tasks.records import Experience, Ints, Pixels
from tasks.sampling.confidence import Confidence
from tasks.sampling.sampler import sample_task


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """Draws the tensors of a task, as a pure function of (seed, episode, slot).

    clean: the clean images; only read if train.query or task.clean_support takes some. learned: the images of each
    experience, right and wrong; only read if train.query takes some.
    """

    deployed: DeployedModel
    experiences: Mapping[str, Experience]
    confidence: Confidence
    config: Config
    clean: CleanImages | None
    learned: Mapping[str, LearnedImages] = field(default_factory=dict)
    _right: dict[tuple[str, int], LearnedImages] = field(default_factory=dict)

    def task(self, episode: int, slot: int) -> TaskBatch:
        """Task number `slot` of an episode: support from D_collect, query from D_fail of one sampled experience.

        The other images of the outer loss are the task's `clean` batch; if no failures are wanted, they are its query.
        """
        settings, seed = self.config.task, self.config.seed
        drawn = sample_task(
            self.experiences,
            self.confidence,
            seed=seed,
            episode=episode,
            slot=slot,
            shots=settings.shots,
            query_size=settings.query_size,
        )
        experience = self.experiences[drawn.experience]
        masks = int(keyed_generator("dropout", seed, episode, slot).integers(2**31))
        clean = keyed_generator("clean-support", seed, episode, slot)
        beside = self._beside(episode, slot, experience) if self.config.train.query.beside else None
        judged_by = beside
        if self.config.train.query.failures:
            judged_by = failure_batch(self.deployed, experience.fail, drawn.query_rows)
        assert judged_by is not None  # some share is above 0
        return TaskBatch(
            support=support_batch(
                self.deployed,
                experience.collect,
                drawn.support_rows,
                self.clean,
                count=settings.clean_support,
                generator=clean,
                seed=masks,
            ),
            query=judged_by,
            clean=None if judged_by is beside else beside,
        )

    def _beside(self, episode: int, slot: int, experience: Experience) -> Batch:
        """The images of the outer loss besides failures: clean ones, then those of the experience, all or right."""
        query = self.config.train.query
        shares = (query.clean, query.environment, query.right)
        clean, environment, right = counts_of(self.config.task.query_size, shares)
        generator = keyed_generator("query", self.config.seed, episode, slot)
        images, labels = list[Pixels](), list[Ints]()
        if clean:
            assert self.clean is not None
            some = self.clean.sample(clean, generator)
            images, labels = [some.images_NHWC[:]], [some.labels_N]
        name = experience.corruption
        if environment or right:
            severity = int(generator.choice(self._severities(name, with_right=right > 0)))
            for count, learned in (
                (environment, self.learned[name]),
                (right, self._right_at(name, severity)),
            ):
                if count:
                    pixels_BHWC, labels_B = learned.drawn(count, severity, generator)
                    images, labels = [*images, pixels_BHWC], [*labels, labels_B]
        return image_batch(self.deployed, np.concatenate(images), np.concatenate(labels))

    def _severities(self, name: str, *, with_right: bool) -> list[int]:
        """The severities of an experience, those with images that the DNN gets right if these are wanted.

        Raises DataError if there are none.
        """
        every = self.learned[name].source.severities
        found = [s for s in every if not with_right or len(self._right_at(name, s).rows_N)]
        if not found:
            raise DataError(
                f"train.query takes images of {name} that the deployed DNN gets right, and there are none. Set "
                "train.query.right to 0, or leave the experience out."
            )
        return found

    def _right_at(self, name: str, severity: int) -> LearnedImages:
        """The images of an experience that the deployed DNN gets right at a severity."""
        key = name, severity
        if key not in self._right:
            self._right[key] = self.learned[name].right(self.experiences[name], severity)
        return self._right[key]


def slots_of(rank: int, world_size: int, tasks: int) -> range:
    """The contiguous block of an episode's tasks that worker `rank` differentiates; it may be empty."""
    base, extra = divmod(tasks, world_size)
    start = rank * base + min(rank, extra)
    return range(start, start + base + (rank < extra))

"""Draws the tensors of meta-training tasks, and divides an episode's tasks among the workers.

Source: paper Algorithm 1, lines 4-6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from metarepair.config.run import Config
from metarepair.data.batches import failure_batch, image_batch, support_batch
from metarepair.data.clean_images import CleanImages
from metarepair.engine.types import Batch, TaskBatch
from metarepair.models.build import DeployedModel
from tasks.datasets import Dataset
from tasks.environments import corrupted_images
from tasks.keys import keyed_generator
from tasks.records import Experience
from tasks.sampling.confidence import Confidence
from tasks.sampling.sampler import sample_task


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """Draws the tensors of a task, as a pure function of (seed, episode, slot).

    train: the split that `clean` and the experiences were made from; only read if train.clean_corrupted is above 0.
    """

    deployed: DeployedModel
    experiences: Mapping[str, Experience]
    confidence: Confidence
    config: Config
    clean: CleanImages | None
    train: Dataset | None = None

    def task(self, episode: int, slot: int) -> TaskBatch:
        """Task number `slot` of an episode: support from D_collect, query from D_fail of one sampled experience."""
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
            query=failure_batch(self.deployed, experience.fail, drawn.query_rows),
            clean=self._clean(episode, slot, len(drawn.query_rows), drawn.experience),
        )

    def _clean(self, episode: int, slot: int, size: int, corruption: str) -> Batch | None:
        """Images for the clean loss; the last ones (a share of train.clean_corrupted) have the task's corruption."""
        settings, seed = self.config.train, self.config.seed
        if self.clean is None or settings.clean_weight == 0:
            return None
        generator = keyed_generator("clean", seed, episode, slot)
        size = min(size, len(self.clean))
        rows = generator.choice(len(self.clean), size=size, replace=False)
        images = self.clean.images_NHWC[rows]  # a copy
        count = round(settings.clean_corrupted * size)
        if count:
            assert self.train is not None
            severity = int(generator.choice(self.config.mining.severities))
            images[size - count :] = corrupted_images(
                self.train, rows[size - count :], corruption=corruption, severity=severity, seed=seed
            )
        return image_batch(self.deployed, images, self.clean.labels_N[rows])


def slots_of(rank: int, world_size: int, tasks: int) -> range:
    """The contiguous block of an episode's tasks that worker `rank` differentiates; it may be empty."""
    base, extra = divmod(tasks, world_size)
    start = rank * base + min(rank, extra)
    return range(start, start + base + (rank < extra))

"""Holds the data that a repair may see: the target's D_collect and, where given, clean training images.

D_fail is not reachable from here: the evaluator opens it after all repairs are saved.
Source: paper Algorithm 1, lines 14-15; the split into two parts is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from metarepair.config.repair import AnyConfig
from metarepair.data.batches import support_batch
from metarepair.data.clean_images import CleanImages
from metarepair.engine.types import Batch
from metarepair.models.build import DeployedModel
from tasks.environments import Environment
from tasks.errors import TooFewFailuresError
from tasks.experiences.pixels import rows_of_images
from tasks.keys import keyed_generator
from tasks.records import Failures, Ints
from tasks.sampling.sampler import semantic_cover, split_validation
from tasks.splits import SELECT

Uses = Literal["failures", "unlabelled", "clean", "experiences", "joint", "merged"]


@dataclass(frozen=True, kw_only=True)
class RepairData:
    """The data of one repair.

    learn: the part of D_collect to learn from. validation: the part that is used only for selection. clean: the clean
    training split, None if it is not given.
    """

    target: str
    learn: Failures
    validation: Failures
    clean: CleanImages | None = None


def split_collected(
    collect: Failures, config: AnyConfig, seed: int, source: Environment | None = None
) -> RepairData:
    """Split D_collect by image. All methods get the same split for the same repair seed.

    source: the environment, whose own images to select by are the validation part, if it has any. Raises
    TooFewFailuresError if the DNN fails on none of these, or on none of the images to learn from.
    """
    if source is not None and (source.parts_N == SELECT).any():
        learn, validation = split_by_parts(collect.image_ids_N, source)
        return RepairData(target=source.name, learn=collect.take(learn), validation=collect.take(validation))
    learn, validation = split_validation(
        collect.image_ids_N,
        fraction=config.repair.validation_fraction,
        seed=config.seed + seed,
        target=collect.corruption,
    )
    return RepairData(
        target=collect.corruption, learn=collect.take(learn), validation=collect.take(validation)
    )


def split_by_parts(image_ids_N: Ints, source: Environment) -> tuple[Ints, Ints]:
    """The rows of D_collect to learn from and those to select by. Raises TooFewFailuresError if either are none."""
    selects_N = source.parts_N[rows_of_images(source.image_ids_N, image_ids_N)] == SELECT
    learn, validation = np.flatnonzero(~selects_N), np.flatnonzero(selects_N)
    if not len(learn) or not len(validation):
        raise TooFewFailuresError(
            f"{source.name}: of the {len(image_ids_N)} failures collected, {len(learn)} are of images to learn from "
            f"and {len(validation)} of images to select by; a repair needs at least one of each. Give more "
            "photographs, or a column of finer groups."
        )
    return learn, validation


def cut_to_uses(data: RepairData, uses: Sequence[Uses]) -> RepairData:
    """`data` reduced to what a method declares in `uses`: labels of D_collect, its images, clean images."""
    return replace(
        data,
        learn=_visible(data.learn, uses),
        validation=_visible(data.validation, uses),
        clean=data.clean if "clean" in uses else None,
    )


def _visible(failures: Failures, uses: Sequence[Uses]) -> Failures:
    if "failures" in uses:
        return failures
    visible = failures if "unlabelled" in uses else failures.take(np.empty(0, np.int64))
    unknown = np.full(len(visible), -1, np.int64)
    return replace(visible, labels_N=unknown, predicted_N=unknown)


def draw_support(
    deployed: DeployedModel, data: RepairData, config: AnyConfig, *, seed: int, episode: int, slot: int
) -> Batch:
    """The support batch of one task: failures of every class, then `task.clean_support` clean images.

    The draw depends only on (seed, episode, slot), so the evaluator can walk the same tasks again.
    """
    generator = keyed_generator("repair", config.seed, seed, data.target, episode, slot)
    rows = semantic_cover(data.learn.labels_N, shots=config.task.shots, generator=generator)
    seed_of_masks = int(generator.integers(2**31))
    return support_batch(
        deployed,
        data.learn,
        rows,
        data.clean,
        count=config.task.clean_support,
        generator=generator,
        seed=seed_of_masks,
    )

"""Sample semantic-cover tasks from experiences, according to the confidence in each experience.

Each task is drawn by a generator keyed by (seed, episode, slot), so it does not depend on the number of workers,
on restarts, or on which worker draws it. Source: paper Sec. 4.2 and Algorithm 1, lines 4-5 and 14-15.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tasks.errors import DataError
from tasks.keys import keyed_generator
from tasks.records import Experience, Ints, Task
from tasks.sampling.confidence import Confidence

# N examples of D_collect, B of a support


def semantic_cover(labels_N: Ints, *, shots: int, generator: np.random.Generator) -> Ints:
    """Rows [shots × classes] of a support with `shots` examples of every class in `labels_N`, shuffled.

    A class with fewer than `shots` examples gives all of them, plus draws with replacement. Raises DataError if
    `labels_N` is empty.
    """
    if len(labels_N) == 0:
        raise DataError("a support cannot be drawn from an empty D_collect. Collect more failures.")
    chosen = []
    for label in np.unique(labels_N):
        members = generator.permutation(np.flatnonzero(labels_N == label))
        extra = generator.choice(members, size=max(shots - len(members), 0), replace=True)
        chosen.append(np.concatenate([members[:shots], extra]))
    return generator.permutation(np.concatenate(chosen))


def sample_task(
    experiences: Mapping[str, Experience],
    confidence: Confidence,
    *,
    seed: int,
    episode: int,
    slot: int,
    shots: int,
    query_size: int,
) -> Task:
    """Sample the task of one slot of an episode.

    An experience is drawn by its confidence, the support from its D_collect, and the query from its D_fail without
    replacement (all of D_fail if it is smaller than `query_size`).
    """
    generator = keyed_generator("task", seed, episode, slot)
    index = int(generator.choice(len(confidence.names), p=confidence.probabilities_K))
    experience = experiences[confidence.names[index]]
    support = semantic_cover(experience.collect.labels_N, shots=shots, generator=generator)
    num_fail = len(experience.fail)
    query = generator.choice(num_fail, size=min(query_size, num_fail), replace=False)
    return Task(
        experience=experience.corruption,
        episode=episode,
        slot=slot,
        support_rows=support,
        query_rows=np.sort(query),  # ascending rows keep reads of the memory map sequential
        probability=float(confidence.probabilities_K[index]),
    )


def split_validation(image_ids_N: Ints, *, fraction: float, seed: int, target: str) -> tuple[Ints, Ints]:
    """Split D_collect by image into rows for learning and rows for validation (model selection), in this order.

    `fraction` of the images (at least one, never all) go to validation; no method learns from their failures. Raises
    DataError for fewer than two images.
    """
    images = np.unique(image_ids_N)
    if len(images) < 2:
        raise DataError(
            f"{target}: D_collect has failures of {len(images)} image; a validation part needs at least two images. "
            "Collect more failures (mining.collect)."
        )
    held_out = min(max(round(len(images) * fraction), 1), len(images) - 1)
    chosen = keyed_generator("validation", seed, target).permutation(images)[:held_out]
    is_validation = np.isin(image_ids_N, chosen)
    return np.flatnonzero(~is_validation), np.flatnonzero(is_validation)

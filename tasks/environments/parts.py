"""Set aside images that judge, and images that select, before anything else is done with an environment."""

# N images

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DataError
from tasks.keys import keyed_generator
from tasks.records import Ints

LEARN, SELECT, JUDGE, UNUSED = 0, 1, 2, 3  # what an image is for
SHARE = 0.2  # of a user's images that judge, and that select
Parts = NDArray[np.int8]
Mask = NDArray[np.bool_]


def judge_half(num_images: int, *, fraction: float | None, seed: int) -> Parts:
    """Choose the test images that only judge, at random.

    Args:
        num_images: number of images of the split.
        fraction: share to set aside, above 0 and below 1; `None` sets none aside.
        seed: the run's seed.

    Returns:
        int8 [N], LEARN or JUDGE.

    Raises:
        DataError: there are too few images to have some on both sides.
    """
    parts_N = np.full(num_images, LEARN, np.int8)
    if fraction is None:
        return parts_N
    count = round(fraction * num_images)
    if not 0 < count < num_images:
        raise DataError(
            f"mining.judge_fraction={fraction} of {num_images} test images sets {count} aside, and both sides need "
            "some. Give more test images, or another fraction."
        )
    parts_N[keyed_generator("judge", seed).permutation(num_images)[:count]] = JUDGE
    return parts_N


def set_aside(groups_N: Ints, holdout_N: Mask, *, name: str, seed: int) -> Parts:
    """Choose whole groups of a user's images that judge, and whole groups that select, at random.

    Args:
        groups_N: int64 [N], the number of each image's group.
        holdout_N: bool [N], the images of the user's own holdout. If there are any, they judge, and other images of
            their groups (near-duplicates) are not used.
        name: name of the environment.
        seed: the run's seed.

    Returns:
        int8 [N]: LEARN, SELECT, JUDGE or UNUSED.

    Raises:
        DataError: there are too few groups to set some aside and still have some to learn from.
    """
    parts_N = np.full(len(groups_N), LEARN, np.int8)
    parts_N[np.isin(groups_N, groups_N[holdout_N])] = UNUSED
    parts_N[holdout_N] = JUDGE
    total = int((parts_N == LEARN).sum())
    if not holdout_N.any():
        parts_N[_some_groups(groups_N, parts_N, round(SHARE * total), name, "judge", seed)] = JUDGE
    parts_N[_some_groups(groups_N, parts_N, round(SHARE * total), name, "select", seed)] = SELECT
    return parts_N


def _some_groups(groups_N: Ints, parts_N: Parts, images: int, name: str, purpose: str, seed: int) -> Mask:
    """At least `images` of the images to learn from: those of random groups, but never of all groups."""
    groups, sizes = np.unique(groups_N[parts_N == LEARN], return_counts=True)
    if len(groups) < 2:
        count = len(np.unique(groups_N))
        raise DataError(
            f"{name}: its {len(groups_N)} images form {count} group{'' if count == 1 else 's'}. That is too few to "
            "judge by some, select by others and learn from the rest, as images of one group and near-duplicates stay "
            "together. Give more images, a column of finer groups, or a holdout."
        )
    order = keyed_generator("set aside", seed, name, purpose).permutation(len(groups))
    enough = int(np.searchsorted(np.cumsum(sizes[order]), max(images, 1))) + 1
    chosen = groups[order[: min(enough, len(groups) - 1)]]
    mask: Mask = (parts_N == LEARN) & np.isin(groups_N, chosen)
    return mask

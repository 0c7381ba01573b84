"""Set aside images that judge, and images that select, before anything else is done with an environment."""

# N images

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DataError
from tasks.keys import keyed_generator
from tasks.records import Ints

LEARN, SELECT, JUDGE, UNUSED = 0, 1, 2, 3  # what an image is for
SHARE = 0.2  # of a user's images of an environment that judge, and that select
CLEAN_SHARE = 0.25  # of clean images without splits of their own that judge, and that select
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


def group_numbers(names: Sequence[str | None]) -> Ints | None:
    """Number the groups that a user gave.

    Args:
        names: the name of each image's group; an image without one is alone.

    Returns:
        int64 [N], a number for each group; `None` if there are no groups at all.
    """
    if not any(name is not None for name in names):
        return None
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault((row,) if g is None else g, row) for row, g in enumerate(names)])


def set_aside(
    groups_N: Ints, holdout_N: Mask, *, name: str, seed: int, unused_N: Mask | None = None
) -> Parts:
    """Choose whole groups of a user's images that judge, and whole groups that select, at random.

    Args:
        groups_N: int64 [N], the number of each image's group.
        holdout_N: bool [N], the images of the user's own holdout. If there are any, they judge, and other images of
            their groups (near-duplicates among them) are not used.
        name: name of the environment.
        seed: the run's seed.
        unused_N: bool [N], images that are neither learned from nor judge, unless they are of the holdout.

    Returns:
        int8 [N]: LEARN, SELECT, JUDGE or UNUSED.

    Raises:
        DataError: there are too few groups to set some aside and still have some to learn from.
    """
    parts_N = np.full(len(groups_N), LEARN, np.int8)
    parts_N[np.isin(groups_N, groups_N[holdout_N])] = UNUSED
    if unused_N is not None:
        parts_N[unused_N] = UNUSED
    parts_N[holdout_N] = JUDGE
    images = max(round(SHARE * int((parts_N == LEARN).sum())), 1)
    given = bool(holdout_N.any())
    if not _choose(parts_N, groups_N, images, judged=given, key=("set aside", seed, name)):
        raise _too_few(groups_N[parts_N == LEARN], name, held=given)
    return parts_N


def split_clean(groups_N: Ints, *, name: str) -> Parts:
    """Choose whole groups of clean images that judge, and whole groups that select, always the same ones.

    Args:
        groups_N: int64 [N], the number of each image's group.
        name: what to call the images in an error message.

    Returns:
        int8 [N]: about a quarter JUDGE, a quarter SELECT, and the rest LEARN.

    Raises:
        DataError: there are fewer than three groups.
    """
    parts_N = np.full(len(groups_N), LEARN, np.int8)
    images = max(round(CLEAN_SHARE * len(groups_N)), 1)
    if not _choose(parts_N, groups_N, images, judged=False, key=("split clean",)):
        raise _too_few(groups_N, name, held=None)
    return parts_N


def _choose(
    parts_N: Parts, groups_N: Ints, images: int, *, judged: bool, key: tuple[str, *tuple[int | str, ...]]
) -> bool:
    """Set about `images` images to JUDGE (unless some are `judged`) and to SELECT; False if too few are left."""
    for part, purpose, leave in ((JUDGE, "judge", 2), (SELECT, "select", 1)):
        if part == JUDGE and judged:
            continue
        order = keyed_generator(*key, purpose).permutation
        chosen_N = _some_groups(groups_N, parts_N, images, leave=leave, order=order)
        if chosen_N is None:
            return False
        parts_N[chosen_N] = part
    return True


def _some_groups(
    groups_N: Ints, parts_N: Parts, images: int, *, leave: int, order: Callable[[int], Ints]
) -> Mask | None:
    """The images of random groups, about `images` of those to learn from; `None` if fewer than `leave` groups are left.

    A group that would make them more than twice as many is passed over, unless all are that large.
    """
    groups, sizes = np.unique(groups_N[parts_N == LEARN], return_counts=True)
    if len(groups) <= leave:
        return None
    taken = 0
    chosen: list[int] = []
    for place in order(len(groups)):
        if taken >= images or len(chosen) == len(groups) - leave:
            break
        if taken + sizes[place] <= 2 * images:
            taken += int(sizes[place])
            chosen.append(int(place))
    mask: Mask = (parts_N == LEARN) & np.isin(groups_N, groups[chosen or [int(sizes.argmin())]])
    return mask


def _too_few(groups_L: Ints, name: str, *, held: bool | None) -> DataError:
    """The error for too few groups. held: whether the images have a holdout; None if they cannot have one."""
    count = len(np.unique(groups_L))
    where = " outside the groups of its holdout" if held else ""
    finer = "or a column of finer groups" if held is None else "a column of finer groups, or a holdout"
    return DataError(
        f"{name}: its {len(groups_L)} images{where} form {count} group{'' if count == 1 else 's'}. That is too few to "
        "judge by some, select by others and learn from the rest, as images of one group and near-duplicates stay "
        f"together. Give more images, {finer}{' of other groups' if held else ''}."
    )

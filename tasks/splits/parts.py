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


def judge_half(groups_N: Ints, *, fraction: float | None, seed: int) -> Parts:
    """Choose the test images that only judge, at random, by whole groups.

    Args:
        groups_N: int64 [N], the number of each image's group.
        fraction: share to set aside, above 0 and below 1; `None` sets none aside.
        seed: the run's seed.

    Returns:
        int8 [N], LEARN or JUDGE.

    Raises:
        DataError: there are too few images, or groups, to have some on both sides.
    """
    parts_N = np.full(len(groups_N), LEARN, np.int8)
    if fraction is None:
        return parts_N
    count = round(fraction * len(groups_N))
    of_N = in_order(groups_N)
    sizes = np.bincount(of_N)
    order = keyed_generator("judge", seed).permutation(len(sizes))
    before = np.cumsum(sizes[order]) - sizes[order]  # images of the groups that come first
    judges = order[before < count]
    if not 0 < count < len(of_N) or len(judges) == len(sizes):
        raise DataError(
            f"mining.judge_fraction={fraction} of {len(of_N)} test images in {len(sizes)} groups sets {count} aside, "
            "and both sides need some. Give more test images, or another fraction."
        )
    parts_N[np.isin(of_N, judges)] = JUDGE
    return parts_N


def select_of_learned(parts_N: Parts, groups_N: Ints, *, seed: int) -> Parts:
    """Choose half of the images that do not judge to select by, at random, by whole groups.

    Args:
        parts_N: int8 [N], LEARN or JUDGE.
        groups_N: int64 [N], the number of each image's group.
        seed: the run's seed.

    Returns:
        int8 [N]: the same, with SELECT for about half of LEARN.

    Raises:
        DataError: there are fewer than two groups to learn from.
    """
    selecting_N = parts_N.copy()
    images = max(int((parts_N == LEARN).sum()) // 2, 1)
    order = keyed_generator("select", seed).permutation
    chosen_N = _some_groups(groups_N, parts_N, images, leave=1, order=order)
    if chosen_N is None:
        raise DataError(
            "limits need test images to select by beside those to learn from, and there is only one group of them. "
            "Give more test images, or leave out limits."
        )
    selecting_N[chosen_N] = SELECT
    return selecting_N


def in_order(numbers_N: Ints) -> Ints:
    """Renumber groups from 0 in the order of first appearance.

    Args:
        numbers_N: int64 [N], the number of each image's group.

    Returns:
        int64 [N].
    """
    _, first, of_N = np.unique(numbers_N, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    ranks: Ints = rank[of_N]
    return ranks


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
    groups_N: Ints,
    holdout_N: Mask,
    *,
    name: str,
    seed: int,
    judged_N: Mask | None = None,
    learned_N: Mask | None = None,
    given_N: Parts | None = None,
) -> Parts:
    """Choose whole groups of a user's images that judge, and whole groups that select, at random.

    Args:
        groups_N: int64 [N], the number of each image's group.
        holdout_N: bool [N], the images of the user's own holdout. If there are any, they judge, and other images of
            their groups (near-duplicates among them) are not used.
        name: name of the environment.
        seed: the run's seed.
        judged_N: bool [N], images that show what judges elsewhere, too: they are not used, unless the holdout has them.
        learned_N: bool [N], images that show what is learned from or selected by elsewhere, too: they are not used.
        given_N: int8 [N], what each image is for if that was chosen before; `None` chooses.

    Returns:
        int8 [N]: LEARN, SELECT, JUDGE or UNUSED.

    Raises:
        DataError: there are too few groups to set some aside and still have some to learn from, or no image of the
            holdout may judge.
    """
    parts_N = np.full(len(groups_N), LEARN, np.int8) if given_N is None else given_N.copy()
    parts_N[np.isin(groups_N, groups_N[holdout_N])] = UNUSED
    nothing = np.zeros(len(groups_N), dtype=bool)
    judged_N, learned_N = (nothing if mask is None else mask for mask in (judged_N, learned_N))
    parts_N[judged_N | learned_N] = UNUSED
    parts_N[holdout_N & ~learned_N] = JUDGE
    if holdout_N.any() and not (parts_N == JUDGE).any():
        raise DataError(
            f"{name}: every image of its holdout shows what is also among the clean images to learn from or to select "
            "by. Give a holdout of other images."
        )
    images = max(round(SHARE * int((parts_N == LEARN).sum())), 1)
    given = bool(holdout_N.any())
    chosen = {LEARN, SELECT, JUDGE} <= {*parts_N.tolist()}
    if given_N is None:
        chosen = _choose(parts_N, groups_N, images, judged=given, key=("set aside", seed, name))
    if not chosen:
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

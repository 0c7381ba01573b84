"""Check that images are set aside by whole groups, the same ones each time, and that some are left to learn from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.splits.parts import JUDGE, LEARN, SELECT, SHARE, UNUSED, judge_half, set_aside

NO_HOLDOUT = np.zeros(100, bool)


def test_a_share_of_the_images_judges_and_a_share_selects() -> None:
    parts = set_aside(np.arange(100), NO_HOLDOUT, name="cam", seed=0)
    assert np.bincount(parts).tolist() == [60, 20, 20]
    assert (parts == set_aside(np.arange(100), NO_HOLDOUT, name="cam", seed=0)).all()
    assert (parts != set_aside(np.arange(100), NO_HOLDOUT, name="cam", seed=1)).any()
    assert (parts != set_aside(np.arange(100), NO_HOLDOUT, name="other", seed=0)).any()


@settings(max_examples=100, deadline=None)
@given(groups=st.lists(st.integers(0, 9), min_size=1, max_size=60), held=st.integers(0, 5))
def test_no_group_is_on_two_sides(groups: list[int], held: int) -> None:
    groups_N = np.array(groups)
    holdout_N = np.arange(len(groups)) < held
    left = len(np.unique(groups_N[~np.isin(groups_N, groups_N[holdout_N])]))
    if left < (2 if holdout_N.any() else 3):
        with pytest.raises(DataError, match="too few to judge by some"):
            set_aside(groups_N, holdout_N, name="cam", seed=0)
        return
    parts = set_aside(groups_N, holdout_N, name="cam", seed=0)
    assert ((parts == JUDGE) == holdout_N).all() or not holdout_N.any()
    sides = {part: set(groups_N[parts == part]) for part in (LEARN, SELECT, JUDGE)}
    assert all(sides.values())
    assert not sides[LEARN] & sides[SELECT]
    assert not (sides[LEARN] | sides[SELECT]) & sides[JUDGE]


def test_near_duplicates_of_the_holdout_are_not_used() -> None:
    groups = np.array([0, 0, 1, 2, 3, 4])
    parts = set_aside(groups, np.array([True, False, False, False, False, False]), name="cam", seed=0)
    assert parts[:2].tolist() == [JUDGE, UNUSED]
    assert set(parts[2:].tolist()) == {LEARN, SELECT}


@pytest.mark.parametrize("seed", range(5))
def test_a_group_that_is_too_large_to_be_set_aside_is_learned_from(seed: int) -> None:
    groups = np.concatenate([np.zeros(300, int), np.arange(1, 101)])
    parts = set_aside(groups, np.zeros(400, bool), name="cam", seed=seed)
    assert (parts[:300] == LEARN).all()
    assert (parts == JUDGE).sum() == 80
    assert (parts == SELECT).any()


def test_images_that_are_not_to_be_used_do_neither_and_a_holdout_still_judges() -> None:
    unused, holdout = np.arange(100) < 30, np.arange(100) >= 90
    parts = set_aside(np.arange(100), NO_HOLDOUT, name="cam", seed=0, judged_N=unused)
    assert (parts[:30] == UNUSED).all()
    assert not (parts[30:] == UNUSED).any()
    parts = set_aside(np.arange(100), holdout, name="cam", seed=0, judged_N=~unused)
    assert ((parts == JUDGE) == holdout).all()


def test_what_is_learned_elsewhere_does_not_judge_in_a_holdout_either() -> None:
    learned, holdout = np.arange(100) % 2 == 0, np.arange(100) >= 90
    parts = set_aside(np.arange(100), holdout, name="cam", seed=0, learned_N=learned)
    assert (parts[learned] == UNUSED).all()
    assert ((parts == JUDGE) == (holdout & ~learned)).all()
    with pytest.raises(
        DataError, match="every image of its holdout shows what is also among the clean images"
    ):
        set_aside(np.arange(100), holdout, name="cam", seed=0, learned_N=holdout)


def test_a_holdout_of_the_same_groups_leaves_nothing_to_learn_from() -> None:
    with pytest.raises(
        DataError, match=r"its 0 images outside the groups of its holdout form 0 groups.*other groups"
    ):
        set_aside(np.arange(100) % 3, np.arange(100) < 10, name="cam", seed=0)


def test_a_group_that_holds_everything_is_refused() -> None:
    with pytest.raises(DataError, match=r"its 100 images form 1 group\. That is too few"):
        set_aside(np.zeros(100, int), NO_HOLDOUT, name="cam", seed=0)


def test_a_random_part_of_the_test_images_judges() -> None:
    parts = judge_half(np.arange(1001), fraction=0.5, seed=3)
    assert np.bincount(parts, minlength=3).tolist() == [501, 0, 500]
    assert (parts != judge_half(np.arange(1001), fraction=0.5, seed=4)).any()
    assert not judge_half(np.arange(10), fraction=None, seed=0).any()
    with pytest.raises(DataError, match="both sides need"):
        judge_half(np.arange(2), fraction=0.1, seed=0)


def test_whole_groups_of_test_images_judge() -> None:
    groups = np.repeat([7, 3, 9, 1, 5, 2], [5, 1, 4, 2, 3, 5])
    parts = judge_half(groups, fraction=0.5, seed=0)
    assert not set(groups[parts == JUDGE]) & set(groups[parts == LEARN])
    assert (parts == JUDGE).sum() in range(10, 15)
    with pytest.raises(DataError, match="in 1 groups"):
        judge_half(np.zeros(10, int), fraction=0.5, seed=0)


def test_the_share_is_met_with_groups_of_unequal_size() -> None:
    groups = np.repeat(np.arange(40), np.arange(40) % 7 + 1)
    parts = set_aside(groups, np.zeros(len(groups), bool), name="cam", seed=0)
    for part in (JUDGE, SELECT):
        assert SHARE * len(groups) <= (parts == part).sum() <= SHARE * len(groups) + 7

"""Test how photographs are divided when right ones stand in for clean images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from metarepair.config.load import parse_config
from metarepair.config.user_defaults import user_defaults
from metarepair.runs.layout import Run
from metarepair.stages import without_clean
from metarepair.stages.without_clean import FOLDER, MADE_FROM, RIGHT, WRONG, check_stand_in, judging_wrong
from tasks.errors import DataError, StageError
from tasks.records import Ints
from tasks.splits.near_duplicates import group_images
from tasks.splits.parts import JUDGE, Mask, group_numbers, split_clean

HASHES_N = np.random.default_rng(0).integers(0, 2**63, 120).astype(np.uint64)
GROUPS_N = np.arange(120) // 10  # 12 days of 10 photographs


def groups_that_judge(right_N: Mask) -> Ints:
    """The groups of the right photographs that judge once these are a data set of their own."""
    names = [str(group) for group in GROUPS_N[right_N]]
    parts_R = split_clean(group_images(HASHES_N[right_N], group_numbers(names)), name="right")
    return np.unique(GROUPS_N[right_N][parts_R == JUDGE])


@pytest.mark.parametrize("fill", [True, False])
def test_a_group_with_right_and_wrong_photographs_judges_as_a_whole_or_not_at_all(fill: bool) -> None:
    right_N = np.arange(120) % 10 < 6
    judges_N = judging_wrong(HASHES_N, GROUPS_N, right_N, fill=fill)
    judging = groups_that_judge(right_N)
    assert 0 < len(judging) < 12
    np.testing.assert_array_equal(judges_N, ~right_N & np.isin(GROUPS_N, judging))


def test_groups_of_wrong_photographs_alone_judge_up_to_a_fifth() -> None:
    right_N = (np.arange(120) % 10 < 9) & (GROUPS_N < 6)  # the last six days are all wrong
    judges_N = judging_wrong(HASHES_N, GROUPS_N, right_N, fill=True)
    both_N = ~right_N & (GROUPS_N < 6)
    np.testing.assert_array_equal(judges_N[both_N], np.isin(GROUPS_N[both_N], groups_that_judge(right_N)))
    for group in range(6, 12):
        assert len(set(judges_N[group == GROUPS_N])) == 1
    assert 0.2 <= judges_N.sum() / (~right_N).sum() < 0.4
    without = judging_wrong(HASHES_N, GROUPS_N, right_N, fill=False)
    assert not without[GROUPS_N >= 6].any()


def test_any_wrong_photographs_may_judge_if_no_group_has_both() -> None:
    assert not judging_wrong(HASHES_N, GROUPS_N, GROUPS_N < 6, fill=True).any()


def test_too_few_groups_to_learn_from_are_refused() -> None:
    right_N = (np.arange(120) % 10 < 6) | (GROUPS_N > 0)  # the only wrong photographs are of one day
    with pytest.raises(DataError, match="groups of them are left"):
        judging_wrong(HASHES_N, GROUPS_N, right_N, fill=True)


class _Here:
    def inputs(self) -> dict[str, str]:
        return {"deployed": "a", "train": "b"}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"deployed": "a", "train": "c"}, "the photographs have"),
        ({"deployed": "z", "train": "b"}, "the deployed weights have"),
        (None, "missing or damaged"),
    ],
)
def test_a_plan_of_other_photographs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: dict[str, str] | None, words: str
) -> None:
    monkeypatch.setattr(without_clean, "load_surroundings", lambda _: _Here())
    config = parse_config(
        user_defaults({"name": "one", "data": {"name": "cifar10_sample"}, "targets": ["fog"]})
    )
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name in (RIGHT, WRONG):
        (folder / name).touch()
    (folder / MADE_FROM).write_text(json.dumps({"deployed": "a", "train": "b"}), encoding="utf-8")
    check_stand_in(Run(tmp_path), config)
    (folder / MADE_FROM).write_text("" if record is None else json.dumps(record), encoding="utf-8")
    with pytest.raises(StageError, match=words):
        check_stand_in(Run(tmp_path), config)

"""Test how photographs are divided when right ones stand in for clean images."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from metarepair.config.load import parse_config
from metarepair.config.user_defaults import user_defaults
from metarepair.runs.layout import Run
from metarepair.stages import without_clean
from metarepair.stages.without_clean import FOLDER, MADE_FROM, RIGHT, WRONG, check_parts, check_stand_in
from tasks.errors import DataError, StageError


@pytest.mark.parametrize(
    ("parts", "held", "enough"),
    [([0, 1, 2], False, True), ([0, 1], False, False), ([0, 1], True, True), ([0, 2], True, False)],
)
def test_photographs_of_every_part_are_needed(parts: list[int], held: bool, enough: bool) -> None:
    with nullcontext() if enough else pytest.raises(DataError, match="Of the wrong ones, 1 are left"):
        check_parts(np.array(parts, np.int8), "wrong", held=held)


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

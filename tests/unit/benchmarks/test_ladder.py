"""Test the ladder of MetaRepair's settings: its rungs, what they share, and its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.ladder import LADDER, read_ladder, share, table


def test_every_rung_is_a_valid_run_of_pseudo_targets(tmp_path: Path) -> None:
    rungs = read_ladder(LADDER)
    configs = {name: rung.config(tmp_path, 1) for name, rung in rungs.items()}
    assert next(iter(configs.values())).repair.methods[0] == "joint_sgd"  # the bar stands first
    assert {
        (config.seed, config.train.shared, len(config.shared_experiences)) for config in configs.values()
    } == {(1, True, 14)}
    assert not {"gaussian_noise", "impulse_noise", "fog"} & set(configs["today"].targets)


def test_a_rung_has_the_settings_of_its_start_with_its_own_changes(tmp_path: Path) -> None:
    path = tmp_path / "ladder.yaml"
    path.write_text(
        "base: {train: {tasks: 4, start: joint}}\n"
        "rungs:\n"
        "  a: {methods: [none]}\n"
        "  b: {from: a, methods: [sgd], train: {tasks: 8}}\n"
        "  c: {from: b, methods: [joint], joint: {rounds: 3}}\n"
    )
    rungs = read_ladder(path)
    assert rungs["c"].values["train"] == {"tasks": 8, "start": "joint"}
    assert rungs["c"].values["repair"]["methods"] == ["joint"]
    assert [rung.trains_jointly for rung in rungs.values()] == [False, False, True]
    path.write_text("base: {}\nrungs: {b: {from: a, methods: [sgd]}}\n")
    with pytest.raises(ValueError, match="rung b starts from 'a', which does not stand above it"):
        read_ladder(path)


def test_a_finished_folder_is_linked_once_and_half_a_link_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "one" / "joint").mkdir(parents=True)
    (tmp_path / "one" / "joint" / "model").write_text("weights")
    (tmp_path / "two" / "joint.part").mkdir(parents=True)
    (tmp_path / "two" / "joint.part" / "half").write_text("")
    share(tmp_path / "one", tmp_path / "two", ("joint", "score"))
    (tmp_path / "one" / "joint" / "later").write_text("")
    share(tmp_path / "one", tmp_path / "two", ("joint", "score"))
    assert [path.name for path in (tmp_path / "two").rglob("*")] == ["joint", "model"]
    assert (tmp_path / "two" / "joint" / "model").samefile(tmp_path / "one" / "joint" / "model")


def row(method: str, target: str, d_fail: float) -> dict[str, Any]:
    same = {"corrupted": 0.5, "clean": 0.9, "others": 0.7, "prepared_core_s": 80.0, "repair_core_s": 9.0}
    return {"rung": "a", "method": method, "target": target, "seed": 0, "d_fail": d_fail} | same


def test_differences_are_paired_with_the_first_row() -> None:
    rows = [row("joint_sgd", "snow", 0.4), row("joint_sgd", "fog", 0.6)]
    rows += [row("sgd", "snow", 0.41), row("sgd", "fog", 0.63)]
    bar, other = table(rows)[2:]
    assert bar.startswith("| a | `joint_sgd` | 50.0 |  | 50.0 |")
    assert other.startswith("| a | `sgd` | 52.0 | +2.0 ± 1.0 | 50.0 | +0.0 ± 0.0 |")
    assert other.endswith("| 80 | 9 | 2 |")

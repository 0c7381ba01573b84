"""Test the settings that a plan is written as, and that measuring a machine leaves the model as it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from metarepair.config.load import config_text, load_config, parse_config
from metarepair.config.user_defaults import user_defaults
from metarepair.data.workspace import load_surroundings
from metarepair.fixing import speeds
from metarepair.fixing.plan import Plan
from metarepair.fixing.settings import planned_settings
from tasks.corruptions import CORRUPTIONS

GIVEN: dict[str, Any] = {"name": "repaired", "device": "cpu", "data": {"name": "cifar10_sample"}}
PLAN = Plan(
    methods=("joint_sgd", "metarepair", "sgd", "none"),
    sgd_epochs=7,
    joint_rounds=3,
    round_steps=40,
    episodes=30,
    round_episodes=2,
    seconds={"all": 1.0},
)


def test_a_plan_becomes_settings_that_a_file_gives_back(tmp_path: Path) -> None:
    config = parse_config(planned_settings(user_defaults(GIVEN), PLAN, threads=2))
    assert config.repair.methods == PLAN.methods
    assert config.methods == {"sgd": {"epochs": 7}, "joint_sgd": {"epochs": 7}}
    assert (config.joint.rounds, config.joint.round_steps) == (3, 40)
    assert (config.train.episodes, config.train.round_episodes, config.train.threads) == (30, 2, 2)
    (tmp_path / "fix.yaml").write_text(config_text(config), encoding="utf-8")
    assert load_config(tmp_path / "fix.yaml") == config


def test_users_get_settings_that_hold_clean_accuracy() -> None:
    config = parse_config(user_defaults(GIVEN))
    assert config.repair.clean_weight > 0
    assert config.task.clean_support > 0
    assert config.train.query.clean > 0
    assert config.mining.experiences == tuple(CORRUPTIONS)
    assert config.features.extractor == "deployed"
    assert config.evaluate.others == ()


def test_settings_of_a_kits_trainings_are_left_to_the_kit() -> None:
    settings = user_defaults(GIVEN | {"kit": "kit"})
    assert not {"task", "inner", "features"} & set(settings)
    assert "experiences" not in settings["mining"]
    assert set(settings["train"]) == {"threads"}


def test_measuring_gives_every_speed_and_changes_no_weight(monkeypatch: Any) -> None:
    for name in ("STEP_S", "IMAGE_S", "LEARNED_S", "MINED_S", "TASK_S"):
        monkeypatch.setattr(speeds, name, 0.01)
    few = user_defaults(GIVEN)
    few["mining"]["experiences"] = ["shot_noise", "fog"]
    few["data"] = {"name": "cifar10_sample", "max_train_images": 300, "max_test_images": 100}
    config = parse_config(few)
    here = load_surroundings(config)
    before = {key: value.clone() for key, value in here.deployed.module.state_dict().items()}
    threads_before = torch.get_num_threads()
    try:
        found, threads = speeds.measure(config, here)
    finally:
        torch.set_num_threads(threads_before)
    measured = (found.image_s, found.mined_image_s, found.learned_image_s, found.step_s, found.task_s)
    assert all(0 < seconds < math.inf for seconds in measured)  # which is longer depends on what else runs
    assert 1 <= threads <= config.train.threads
    after = here.deployed.module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not here.deployed.module.training

"""Test that a budget is turned into counts: more time buys more, and the plan costs what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metarepair.config.joint import JointConfig
from metarepair.fixing.plan import (
    JOINT_GROUPS,
    JOINT_STEPS,
    LEAST_EPISODES,
    LEAST_EPOCHS,
    LEAST_JOINT_STEPS,
    MOST_EPISODES,
    MOST_JOINT_STEPS,
    PATH_POINTS,
    SGD_BATCH,
    SGD_CLEAN,
    SGD_EPOCHS,
    Costs,
    Counts,
    Plan,
    Speeds,
    plan_fix,
)
from metarepair.methods.sgd import SgdSettings
from metarepair.repairs.limits import HALVINGS, WEIGHTS
from tasks.errors import ConfigError

SPEEDS = Speeds(
    step_s=0.2, image_s=4e-4, learned_image_s=1.5e-3, mined_image_s=1e-3, task_s=1.0, support_images=100
)
COUNTS = Counts(
    photographs=1000,
    failures=120,
    selecting=200,
    judging=200,
    clean_learn=1000,
    clean_select=500,
    choosing=700,
    clean_judge=500,
    experiences=19,
    severities=5,
    mined=1000,
    collected=1000,
)
COSTS = Costs(speeds=SPEEDS, counts=COUNTS, workers=0)
BUDGETS = (45, 60, 90, 120, 180, 300, 600, 900, 1200, 1800, 3600, 36_000)


def plan(budget_s: float, **changed: int) -> Plan:
    return plan_fix(budget_s, SPEEDS, COUNTS, **changed)


def test_a_plan_counts_with_the_numbers_of_what_it_plans() -> None:
    assert SgdSettings().batch_size == SGD_BATCH
    assert SgdSettings().clean_images == SGD_CLEAN
    assert SgdSettings().epochs == SGD_EPOCHS
    assert JointConfig().groups == JOINT_GROUPS
    assert len(WEIGHTS) + HALVINGS == PATH_POINTS


@pytest.mark.parametrize("budget_s", BUDGETS)
def test_a_plan_never_costs_more_than_its_budget(budget_s: float) -> None:
    assert 0 < plan(budget_s).total_s <= budget_s


def test_more_time_buys_more_candidates_and_longer_trainings() -> None:
    plans = [plan(budget_s) for budget_s in BUDGETS]
    assert [len(p.methods) for p in plans] == sorted(len(p.methods) for p in plans)
    assert {len(p.methods) for p in plans} == {3, 5, 6}
    for methods in (3, 5, 6):
        same = [p for p in plans if len(p.methods) == methods]
        steps = [(p.sgd_epochs, p.joint_rounds * p.round_steps, p.episodes) for p in same]
        assert steps == sorted(steps)


def test_every_plan_keeps_the_model_among_its_candidates() -> None:
    assert all("none" in plan(budget_s).methods for budget_s in BUDGETS)


def test_meta_training_comes_after_joint_training_in_full() -> None:
    full = next(p for p in map(plan, BUDGETS) if "metarepair" in p.methods)
    assert full.joint_rounds * full.round_steps == JOINT_STEPS
    assert full.sgd_epochs == SGD_EPOCHS
    assert LEAST_EPISODES <= full.episodes <= MOST_EPISODES


def test_no_budget_buys_more_than_is_useful() -> None:
    most = plan(1e7)
    assert (most.sgd_epochs, most.episodes) == (SGD_EPOCHS, MOST_EPISODES)
    without = plan_fix(COSTS.full_s(LEAST_EPISODES), SPEEDS, COUNTS)  # not quite enough for MetaRepair
    assert without.episodes == 0
    assert LEAST_JOINT_STEPS <= without.joint_rounds * without.round_steps <= MOST_JOINT_STEPS


def test_below_the_least_budget_the_least_is_named_and_it_suffices() -> None:
    with pytest.raises(ConfigError, match="too little") as refused:
        plan(10)
    least = int(str(refused.value).split("Give --budget ")[1].split("s")[0])
    assert plan(least).sgd_epochs == LEAST_EPOCHS
    with pytest.raises(ConfigError):
        plan(least - 2)


@pytest.mark.parametrize(("methods", "needed"), [(3, "joint_sgd"), (5, "metarepair")])
def test_the_budget_that_a_lacking_candidate_is_said_to_need_suffices(methods: int, needed: str) -> None:
    lacking = next(p for p in map(plan, BUDGETS) if len(p.methods) == methods)
    budget_s = int(lacking.lacking.split("--budget ")[1].removesuffix("s."))
    assert needed not in lacking.methods
    assert needed in plan(budget_s).methods
    assert needed not in plan(budget_s - 2).methods


def test_a_round_is_short_enough_to_show_progress() -> None:
    slow = plan_fix(36_000, replace(SPEEDS, step_s=3.0, task_s=5.0), COUNTS)
    assert slow.round_steps == 1  # of 3 s
    assert slow.round_episodes == 1


def test_workers_buy_more_steps_but_no_more_than_they_divide_a_step_into() -> None:
    steps = [p.joint_rounds * p.round_steps for p in (plan(300, workers=n) for n in (0, 2, 4, 8))]
    assert steps[0] < steps[1] < steps[2] == steps[3]


def test_with_a_kit_nothing_is_trained_but_the_repairs() -> None:
    prepared = plan(180, kit=True)
    assert prepared.joint_rounds == prepared.episodes == 0
    assert {"joint_sgd", "metarepair", "none"} <= set(prepared.methods)
    assert plan(1200, kit=True, refine=50).episodes == 50
    with pytest.raises(ConfigError, match="too little"):
        plan(120, kit=True, refine=5000)


def test_words_say_what_the_budget_buys() -> None:
    bought = plan(300)
    assert f"fine-tuning for {bought.sgd_epochs} epochs" in bought.words
    assert f"joint training for {bought.joint_rounds * bought.round_steps:,} steps" in bought.words
    assert "MetaRepair needs --budget" in bought.words

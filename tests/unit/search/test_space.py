"""Test the dimensions of a search and the settings of its trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarepair.config.load import config_text, known_keys, load_config, parse_config
from metarepair.config.run import Config
from metarepair.meta_training.meta_train import training_settings
from metarepair.search import check
from metarepair.search.check import check_space
from metarepair.search.rules import can_be_searched, check_setting, number_types
from metarepair.search.space import (
    EXPERIENCE_SET,
    FREE,
    Dimension,
    dimensions,
    experiences_of,
    judged_environments,
    trial_config,
)
from tasks.errors import ConfigError

MINED = ["snow", "fog", "shot_noise", "contrast"]
LEAST: dict[str, Any] = {"name": "a", "mining": {"experiences": MINED}}
SHIPPED = sorted((Path(__file__).parents[3] / "tune_configs").glob("search_*.yaml"))


def searched(search: dict[str, Any], **others: Any) -> Config:
    return parse_config(LEAST | others | {"search": search})


def sets(**kinds: Any) -> dict[str, Any]:
    return {"experience_sets": kinds}


def free(*taken: str, of: Any = MINED) -> dict[str, Any]:
    return {FREE + name: name in taken for name in of}


def test_dimensions_stand_in_the_order_of_the_file_with_the_sets_last() -> None:
    space = {
        "train.tasks": {"integers": [2, 4]},
        "experiences.alpha": {"log_uniform": [1e-3, 1]},
        "inner.rate": {"choice": [0.1, 0.03]},
        "experiences.beta": {"uniform": [0, 10]},
    }
    found = dimensions(searched({"space": space} | sets(top_k=[1, 3])))
    assert found == (
        Dimension(name="train.tasks", kind="integers", values=(2, 4)),
        Dimension(name="experiences.alpha", kind="log_uniform", values=(1e-3, 1.0)),
        Dimension(name="inner.rate", kind="choice", values=(0.1, 0.03)),
        Dimension(name="experiences.beta", kind="uniform", values=(0.0, 10.0)),
        Dimension(name=EXPERIENCE_SET, kind="choice", values=(1, 3)),
    )


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({"categories": ["noise", "target"]}, ("noise", "target")),
        ({"sets": {"near": ["snow"], "far": ["SN", "fog"]}}, ("near", "far")),
    ],
)
def test_named_sets_are_one_dimension(given: dict[str, Any], values: tuple[str, ...]) -> None:
    assert dimensions(searched(sets(**given))) == (
        Dimension(name=EXPERIENCE_SET, kind="choice", values=values),
    )


def test_a_free_subset_has_a_dimension_for_each_experience_that_can_be_learned_from() -> None:
    def names(given: Any, **others: Any) -> list[str]:
        found = dimensions(searched(sets(free=given) | others.pop("search", {}), **others))
        assert {d.values for d in found} == {(True, False)}
        return [d.name for d in found]

    assert names(True) == [FREE + name for name in MINED]
    assert names(["FOG", "snow"]) == ["experience fog", "experience snow"]
    assert names(True, targets=["fog"]) == [FREE + name for name in MINED if name != "fog"]
    assert names(True, targets=["fog", "snow"]) == [FREE + name for name in MINED]
    everyone = names(True, targets=["fog"], search={"objective": "pseudo_targets"})
    assert everyone == [FREE + name for name in MINED]


def test_a_trial_has_its_own_values_and_else_the_settings_of_the_search() -> None:
    space = {"inner.rate": {"uniform": [0.1, 1]}, "inner.parts": {"choice": [["*"], ["head"]]}}
    config = searched({"space": space}, seed=7, train={"episodes": 20})
    trial = trial_config(config, {"inner.rate": 0.25, "inner.parts": ["head"]})
    assert trial is not None
    assert (trial.inner.rate, trial.inner.parts, trial.search) == (0.25, ("head",), None)
    back = trial.inner.model_copy(update={"rate": config.inner.rate, "parts": config.inner.parts})
    assert trial.model_copy(update={"inner": back, "search": config.search}) == config


def test_numpy_values_from_a_searcher_become_plain_settings() -> None:
    space = {"inner.rate": {"uniform": [0.1, 1]}, "inner.steps": {"integers": [1, 3]}}
    space |= {"inner.dropout": {"choice": [True, False]}, "train.order": {"choice": ["first"]}}
    drawn = {"inner.rate": np.float64(0.5), "inner.steps": np.int64(2), "inner.dropout": np.bool_(True)}
    trial = trial_config(searched({"space": space}), drawn | {"train.order": np.str_("first")})
    assert trial is not None
    assert (trial.inner.rate, trial.inner.steps, trial.inner.dropout, trial.train.order) == (
        0.5,
        2,
        True,
        "first",
    )


@pytest.mark.parametrize(
    ("given", "value", "learned_from"),
    [
        ({"top_k": [2, 3]}, 3, 3),
        ({"categories": ["weather"]}, "weather", ("snow", "fog")),
        ({"categories": ["target", "weather"]}, "target", ("shot_noise",)),
        ({"sets": {"mine": ["contrast", "SW"]}}, "mine", ("contrast", "snow")),
    ],
)
def test_a_set_becomes_settings_of_experiences(
    given: dict[str, Any], value: Any, learned_from: int | tuple[str, ...]
) -> None:
    before = {"choice": "list", "names": ["fog"], "top_k": 1, "rule": "cutoff"}
    config = searched(sets(**given), experiences=before)
    check_space(config)
    trial = trial_config(config, {EXPERIENCE_SET: value})
    assert trial is not None
    found = experiences_of(trial, "gaussian_noise")
    assert (len(found) if isinstance(learned_from, int) else found) == learned_from
    assert trial.experiences.rule == "cutoff"


def test_a_free_subset_becomes_a_list_of_experiences() -> None:
    config = searched(sets(free=True))
    trial = trial_config(config, free("fog", "contrast"))
    assert trial is not None
    assert (trial.experiences.choice, trial.experiences.names) == ("list", ("fog", "contrast"))


def test_a_free_subset_that_leaves_some_target_without_experiences_is_no_trial() -> None:
    config = searched(sets(free=True))
    assert trial_config(config, free()) is None
    assert trial_config(config, free("fog")) is not None
    pseudo = searched(sets(free=True) | {"objective": "pseudo_targets"})
    assert trial_config(pseudo, free("fog")) is None  # fog does not learn from itself, so nothing is left
    assert trial_config(pseudo, free("fog", "snow")) is not None
    others = searched(
        sets(free=["fog", "snow"]) | {"objective": "pseudo_targets", "pseudo_targets": ["contrast"]},
        targets=["fog"],
    )
    # The objective does not use fog, but the best configuration is for the target fog.
    assert trial_config(others, free("fog", of=["fog", "snow"])) is None


def test_trials_are_judged_by_the_targets_or_by_experiences_left_out() -> None:
    space = {"space": {"inner.steps": {"choice": [1, 2]}}, "objective": "pseudo_targets"}
    assert judged_environments(searched(space | {"objective": "validation"})) == ("gaussian_noise",)
    assert judged_environments(searched(space)) == tuple(MINED)
    assert judged_environments(searched(space | {"pseudo_targets": ["FOG", "snow"]})) == ("fog", "snow")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_search_is_valid(path: Path) -> None:
    config = load_config(path, [])
    check_space(config)
    assert dimensions(config)


def test_a_value_that_needs_another_searched_value_is_allowed() -> None:
    warmup, episodes = {"choice": [0, 100]}, {"choice": [200, 300]}
    space = {"train.warmup_episodes": warmup, "train.episodes": episodes}
    config = searched({"space": space}, train={"episodes": 60})
    check_space(config)
    trial = trial_config(config, {"train.warmup_episodes": 100, "train.episodes": 200})
    assert trial is not None
    assert (trial.train.warmup_episodes, trial.train.episodes) == (100, 200)
    with pytest.raises(ConfigError, match=r"a trial with train\.warmup_episodes=100 would be refused"):
        check_space(searched({"space": {"train.warmup_episodes": warmup}}, train={"episodes": 60}))


def test_a_bad_value_is_found_in_a_space_of_any_size() -> None:
    space: dict[str, Any] = {
        name: {"integers": [1, 5]} for name in ("inner.steps", "task.shots", "train.tasks")
    }
    space |= {"inner.dropout": {"choice": [True, False]}, "inner.momentum": {"uniform": [0, 0.9]}}
    space |= {
        "train.outer_rate": {"log_uniform": [1e-4, 1]},
        "train.clip_norm": {"choice": [None, 1, 2, 3, 4]},
    }
    check_space(searched({"space": space} | sets(free=True)))
    space["train.clip_norm"] = {"choice": [None, 1, 2, 3, 0]}
    with pytest.raises(ConfigError, match=r"a trial with train\.clip_norm=0 would be refused: .*above 0"):
        check_space(searched({"space": space} | sets(free=True)))


def test_a_combination_that_few_points_have_is_found_among_the_corners() -> None:
    flags = ("inner.dropout", "inner.learned_rates", "train.order", "train.query.clean")
    values = ([True, False], [False, True], ["second", "reptile"], [0.0, 0.5])
    space = {name: {"choice": v} for name, v in zip(flags, values, strict=True)}
    with pytest.raises(
        ConfigError, match=r"a trial with train\.order=reptile, train\.query\.clean=0\.5 would"
    ):
        check_space(searched({"space": space | {"inner.learned_rates": {"choice": [False]}}}))


def test_the_only_bad_pair_in_a_large_space_is_found() -> None:
    warmups, lengths = list(range(0, 200, 10)), list(range(208, 188, -1))
    space = {"train.warmup_episodes": {"choice": warmups}, "train.episodes": {"choice": lengths}}
    space |= {"inner.steps": {"integers": [1, 3]}}
    with pytest.raises(
        ConfigError, match=r"a trial with train\.warmup_episodes=190, train\.episodes=189 would"
    ):
        check_space(searched({"space": space}, train={"episodes": 200}))
    space["train.episodes"] = {"choice": lengths[:-1]}
    check_space(searched({"space": space}, train={"episodes": 200}))


def test_a_huge_space_is_checked_by_a_bounded_number_of_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def counted(config: Config, drawn: dict[str, Any]) -> Config | None:
        built.append(drawn)
        return trial_config(config, drawn)

    monkeypatch.setattr(check, "trial_config", counted)
    space = {name: {"choice": list(range(1, 41))} for name in ("inner.steps", "task.shots", "train.tasks")}
    check.check_space(searched({"space": space}))
    assert len(built) == 3 * 40 + check.MOST_PAIRS  # of 4800 pairs


def test_a_population_may_exchange_rates_and_experience_sets() -> None:
    space = {"inner.rate": {"uniform": [0.1, 1]}, "inner.steps": {"integers": [1, 3]}}
    config = searched({"space": space, "scheduler": "pbt"} | sets(categories=["weather", "noise"]))
    check_space(config)
    trial = trial_config(config, {"inner.rate": 0.5, "inner.steps": 3, EXPERIENCE_SET: "noise"})
    assert trial is not None
    assert (trial.inner.rate, trial.inner.steps, trial.experiences.names) == (0.5, 3, ("shot_noise",))
    with pytest.raises(ConfigError, match=r"inner\.parts: scheduler: pbt"):
        check_space(
            searched({"space": space | {"inner.parts": {"choice": [["*"], ["head"]]}}, "scheduler": "pbt"})
        )


def test_beta_can_be_searched_under_the_rules_that_read_it() -> None:
    beta, alpha = {"experiences.beta": {"uniform": [0, 9]}}, {"experiences.alpha": {"uniform": [0, 9]}}
    rules = {"experiences.rule": {"choice": ["hinge", "cutoff"]}}
    for space, drawn, experiences in (
        (beta | rules, {"experiences.beta": 2.0, "experiences.rule": "cutoff"}, {}),
        (beta, {"experiences.beta": 2.0}, {"rule": "cutoff", "alpha": 0}),
        (alpha, {"experiences.alpha": 2.0}, {"rule": "softmax"}),
    ):
        config = searched({"space": space}, experiences=experiences)
        check_space(config)
        trial = trial_config(config, drawn)
        assert trial is not None
        assert {name: getattr(trial.experiences, name.rpartition(".")[2]) for name in drawn} == drawn
    with pytest.raises(ConfigError, match=r"experiences\.beta"):
        check_space(searched({"space": beta}, experiences={"rule": "softmax"}))


def test_every_setting_can_be_searched_or_has_a_reason_why_not() -> None:
    allowed = set(can_be_searched())
    assert {
        "experiences.alpha",
        "inner.steps",
        "inner.rate",
        "train.outer_rate",
        "train.tasks",
        "task.shots",
    } < allowed
    for name in [*known_keys(), *Config.model_fields]:
        if name in allowed:
            check_setting(name)
        elif name not in ("experiences", "task", "inner", "train"):
            with pytest.raises(ConfigError, match=r"cannot be searched; .{20}"):
                check_setting(name)


def test_meta_training_depends_on_every_setting_that_can_be_searched() -> None:
    settings = training_settings(parse_config(LEAST))
    for name in can_be_searched():
        group: Any = settings
        for key in name.split("."):
            assert key in group
            group = group[key]


def test_the_numbers_that_a_setting_takes_are_known() -> None:
    assert number_types("inner.steps") == number_types("experiences.top_k") == {int}
    assert number_types("inner.rate") == number_types("train.clip_norm") == {float}
    for name in ("train.order", "inner.parts", "inner.dropout", "train.outer_options"):
        assert number_types(name) == set()


NUMBERS: dict[type, set[str]] = {
    int: {
        *("experiences.top_k", "task.shots", "task.clean_support", "task.query_size", "inner.steps"),
        *("train.episodes", "train.tasks", "train.warmup_episodes", "train.first_order_episodes"),
        "train.multi_step_episodes",
    },
    float: {
        *("experiences.alpha", "experiences.beta", "inner.rate", "inner.momentum", "inner.weight_decay"),
        *("inner.batch_norm_momentum", "train.outer_rate", "train.clip_norm"),
        *(f"train.query.{share}" for share in ("failures", "right", "environment", "clean")),
    },
}


def test_the_numbers_of_every_setting_are_known() -> None:
    for kind, names in NUMBERS.items():
        assert {name for name in can_be_searched() if kind in number_types(name)} == names


@pytest.mark.parametrize("name", ["1e3", "007", "yes", "2026-11-25", "a"])
def test_settings_written_as_yaml_are_read_as_the_same(tmp_path: Path, name: str) -> None:
    config = parse_config(LEAST | {"name": name, "train": {"outer_rate": 1e-5, "clip_norm": None}})
    path = tmp_path / "c.yaml"
    path.write_text(config_text(config), encoding="utf-8")
    assert load_config(path, []) == config
    assert "search" not in path.read_text(encoding="utf-8")

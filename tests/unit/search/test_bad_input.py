"""Test that an invalid search, or one whose trials would all be equal, is refused before the first trial."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from metarepair.config.load import load_config, parse_config
from metarepair.config.run import Config
from metarepair.search.check import check_distances, check_space
from metarepair.search.space import dimensions
from tasks.errors import ConfigError

MINED = ["snow", "fog", "shot_noise", "contrast"]
LEAST: dict[str, Any] = {"name": "a", "mining": {"experiences": MINED}}
STEPS: dict[str, Any] = {"inner.steps": {"choice": [1, 2]}}

# The section `search`, other settings, and words that the error must contain.
Case = tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]


def space(**values: Any) -> dict[str, Any]:
    """Return a search space; the keyword `inner__rate` stands for the setting inner.rate."""
    return {"space": {name.replace("__", "."): value for name, value in values.items()}}


def rule(name: str, **more: Any) -> dict[str, Any]:
    return {"experiences": {"rule": name, **more}}


SETTINGS: dict[str, Case] = {
    "misspelt": (
        space(inner__rat=STEPS["inner.steps"]),
        {},
        ("no setting 'inner.rat'", "did you mean 'inner.rate'"),
    ),
    "without its section": (space(beta={"uniform": [0, 1]}), {}, ("no setting 'beta'", "'experiences.beta'")),
    "a group": (
        space(inner={"rate": {"choice": [0.1]}}),
        {},
        ("inner has no dot", "such as inner.rate"),
    ),
    "workers": (
        space(workers={"choice": [1, 2]}),
        {},
        ("workers: this setting cannot", "no objective depends on it"),
    ),
    "device": (space(device={"choice": ["cpu"]}), {}, ("no objective depends on it",)),
    "threads": (space(train__threads={"integers": [1, 2]}), {}, ("no objective depends on it",)),
    "memory": (space(train__memory={"choice": ["graph"]}), {}, ("no objective depends on it",)),
    "seed": (space(seed={"integers": [0, 9]}), {}, ("the luckiest",)),
    "repair": (space(repair__seeds={"choice": [[0]]}), {}, ("repair.seeds", "how all trials are judged")),
    "mining": (space(mining__collect={"choice": [10]}), {}, ("made once, before the first trial",)),
    "features": (
        space(features__extractor={"choice": ["deployed"]}),
        {},
        ("made once, before the first trial",),
    ),
    "name": (space(name={"choice": ["b"]}), {}, ("all trials belong to",)),
    "targets": (space(targets={"choice": [["fog"]]}), {}, ("compared on the same",)),
    "storage_path": (
        space(storage_path={"choice": ["x"]}),
        {},
        ("storage_path: this setting cannot be searched",),
    ),
    "itself": (space(search__trials={"choice": [1]}), {}, ("does not search itself",)),
}

START: dict[str, Case] = {
    "the start": (space(train__start={"choice": ["joint"]}), {}, ("made once, before the search",)),
    "a start that has seen what judges": (
        space(inner__rate={"choice": [0.01]}) | {"objective": "pseudo_targets"},
        {"train": {"start": "joint"}},
        ("learned from all experiences", "objective: validation"),
    ),
}

CONFIDENCE: dict[str, Case] = {
    "β under softmax": (
        space(experiences__beta={"uniform": [0, 1]}),
        rule("softmax"),
        ("Eq. 8", "β cancels", "hinge or cutoff"),
    ),
    "β where softmax is searched": (
        space(experiences__rule={"choice": ["hinge", "softmax"]}, experiences__beta={"uniform": [0, 1]}),
        {},
        ("experiences.rule is searched and can be softmax", "β cancels"),
    ),
    "α under uniform": (
        space(experiences__alpha={"log_uniform": [0.1, 1]}),
        rule("uniform"),
        ("experiences.alpha: experiences.rule is uniform", "no effect"),
    ),
    "β under uniform": (
        space(experiences__beta={"uniform": [0, 1]}),
        rule("uniform"),
        ("no effect", "hinge"),
    ),
    "β beside α = 0": (
        space(experiences__beta={"uniform": [0, 1]}),
        rule("hinge", alpha=0),
        ("alpha is 0", "alike"),
    ),
    "α with one experience": (
        space(experiences__alpha={"uniform": [0, 1]}),
        {"experiences": {"choice": "top_k", "top_k": 1}},
        ("one experience to learn from", "all the confidence"),
    ),
    "α with sets of one": (
        space(experiences__alpha={"uniform": [0, 1]}) | {"experience_sets": {"top_k": [1]}},
        {},
        ("one experience to learn from",),
    ),
    "the rule where free subsets leave each target one": (
        space(experiences__rule={"choice": ["hinge", "softmax"]}) | {"experience_sets": {"free": True}},
        {"mining": {"experiences": ["snow", "fog"]}, "targets": ["snow", "fog"]},
        ("experiences.rule: every target", "one experience to learn from"),
    ),
    "top_k of another choice": (
        space(experiences__top_k={"choice": [1]}),
        {},
        ("experiences.choice is all",),
    ),
    "momentum of frozen statistics": (
        space(inner__batch_norm_momentum={"uniform": [0.1, 1]}),
        {"inner": {"batch_norm": "frozen"}},
        ("inner.batch_norm is frozen", "no effect"),
    ),
}

VALUES: dict[str, Case] = {
    "an empty choice": (
        space(inner__rate={"choice": []}),
        {},
        ("search.space.inner.rate.choice", "list is empty"),
    ),
    "no list": (space(inner__rate={"choice": 0.1}), {}, ("0.1 is a single value", "write [0.1]")),
    "a value twice": (space(inner__rate={"choice": [0.1, 0.2, 0.1]}), {}, ("0.1 is listed twice",)),
    "bounds in the wrong order": (
        space(inner__rate={"uniform": [1, 0.1]}),
        {},
        ("[1, 0.1]", "smaller comes first"),
    ),
    "equal bounds": (space(inner__steps={"integers": [2, 2]}), {}, ("both ends are the same",)),
    "one bound": (space(inner__rate={"uniform": [0.1]}), {}, ("two ends",)),
    "a logarithm from 0": (space(inner__rate={"log_uniform": [0, 1]}), {}, ("reaches 0", "logarithm")),
    "an infinite bound": (
        space(experiences__beta={"uniform": [0, math.inf]}),
        {},
        ("both ends must be finite",),
    ),
    "a bound that is no number": (
        space(experiences__beta={"uniform": [math.nan, 1]}),
        {},
        ("must be finite",),
    ),
    "whole numbers for a real one": (
        space(inner__rate={"integers": [1, 2]}),
        {},
        ("inner.rate: integers does not suit a real number", "uniform or log_uniform"),
    ),
    "real numbers for a whole one": (
        space(inner__steps={"uniform": [1, 2]}),
        {},
        ("inner.steps: uniform does not suit a whole number", "integers"),
    ),
    "a fraction among integers": (space(inner__steps={"integers": [1, 2.5]}), {}, ("must be whole numbers",)),
    "a range of words": (
        space(experiences__rule={"uniform": [0, 1]}),
        {},
        ("this setting is not a number", "choice"),
    ),
    "another type": (
        space(inner__steps={"choice": [1, "two"]}),
        {},
        ("inner.steps=two", "must be a whole number"),
    ),
    "a truth for a number": (space(inner__rate={"choice": [True]}), {}, ("inner.rate=True",)),
    "an unknown value": (
        space(train__order={"choice": ["second", "frist"]}),
        {},
        ("train.order=frist", "'first'"),
    ),
    "an end out of range": (
        space(inner__rate={"uniform": [0.1, 20]}),
        {},
        ("inner.rate=20.0", "must be at most 10"),
    ),
    "values that exclude each other": (
        space(
            inner__rate={"uniform": [0.1, 1]},
            train__order={"choice": ["second", "reptile"]},
            inner__learned_rates={"choice": [False, True]},
        ),
        {},
        ("a trial with train.order=reptile, inner.learned_rates=True", "reptile has none"),
    ),
    "several at once": (
        space(inner__rate={"choice": [0.1], "uniform": [0, 1]}),
        {},
        ("choice and uniform are given", "exactly one"),
    ),
    "none": (space(inner__rate={}), {}, ("no values are given", "exactly one")),
    "a misspelt way": (
        space(inner__rate={"choise": [0.1]}),
        {},
        ("inner.rate.choise'", "inner.rate.choice'"),
    ),
    "a bare list": (
        space(inner__rate=[0.1, 0.2]),
        {},
        ("inner.rate: [0.1, 0.2] is not a distribution", "choice"),
    ),
    "nothing": ({}, {}, ("nothing to search", "search.space is empty")),
}

SETS: dict[str, Case] = {
    "top_k above the mined": (
        {"experience_sets": {"top_k": [2, 5]}},
        {},
        ("experience set=5", "top_k=5", "1..4"),
    ),
    "top_k that one pseudo-target lacks": (
        {"experience_sets": {"top_k": [4]}, "objective": "pseudo_targets"},
        {},
        ("for snow", "1..3"),
    ),
    "an unknown category": ({"experience_sets": {"categories": ["wether"]}}, {}, ("'wether'", "'weather'")),
    "a category without experiences": (
        {"experience_sets": {"categories": ["blur"]}},
        {},
        ("blur has no mined",),
    ),
    "a category of one's own alone": (
        {"experience_sets": {"categories": ["target"]}},
        {"targets": ["gaussian_noise", "pixelate"]},
        ("experience set=target", "for pixelate", "leaves none"),
    ),
    "an unknown corruption": (
        {"experience_sets": {"sets": {"a": ["snw"]}}},
        {},
        ("no corruption 'snw'", "'snow'"),
    ),
    "a set that is not mined": (
        {"experience_sets": {"sets": {"a": ["snow"], "b": ["pixelate"]}}},
        {},
        ("experience_sets.sets.b", "no mined experience 'pixelate'"),
    ),
    "an empty set": ({"experience_sets": {"sets": {"a": []}}}, {}, ("list is empty",)),
    "the same set twice": (
        {"experience_sets": {"sets": {"a": ["snow", "fog"], "b": ["fog", "SW"]}}},
        {},
        ("a and b hold the same",),
    ),
    "free with one": ({"experience_sets": {"free": ["snow"]}}, {}, ("1 experience to take or leave (snow)",)),
    "free of one that is mined": (
        {"experience_sets": {"free": True}},
        {"mining": {"experiences": ["snow", "fog"]}, "targets": ["fog"]},
        ("1 experience to take or leave (snow)",),
    ),
    "free to learn from the target": (
        {"experience_sets": {"free": ["snow", "fog", "contrast"]}},
        {"targets": ["fog"]},
        ("fog is the one target itself",),
    ),
    "two kinds of sets": (
        {"experience_sets": {"free": True, "top_k": [1]}},
        {},
        ("top_k and free are given",),
    ),
    "no kind of sets": ({"experience_sets": {}}, {}, ("no sets are given", "exactly one of top_k")),
    "beside a searched choice": (
        {"experience_sets": {"top_k": [1]}} | space(experiences__choice={"choice": ["all", "category"]}),
        {},
        ("experiences.choice: search.experience_sets chooses",),
    ),
    "beside searched names": (
        {"experience_sets": {"top_k": [1]}} | space(experiences__names={"choice": [["fog"], ["snow"]]}),
        {},
        ("experiences.names: search.experience_sets chooses",),
    ),
}

TRIES: dict[str, Case] = {
    "an unknown scheduler": (
        {"space": STEPS, "scheduler": "ashaa"},
        {},
        ("search.scheduler='ashaa'", "mean 'asha'"),
    ),
    "an unknown searcher": (
        {"space": STEPS, "searcher": "optna"},
        {},
        ("search.searcher='optna'", "mean 'optuna'"),
    ),
    "a misspelt setting": (
        {"space": STEPS, "trails": 3},
        {},
        ("no setting 'search.trails'", "'search.trials'"),
    ),
    "a grid of a range": (
        space(inner__rate={"uniform": [0.1, 1]}) | {"searcher": "grid"},
        {},
        ("inner.rate: searcher: grid", "infinitely many"),
    ),
    "asha that ends nothing": (
        {"space": STEPS, "scheduler": "asha", "grace_rounds": 6},
        {"train": {"episodes": 60, "round_episodes": 10}},
        ("grace_rounds=6", "rounds of 10 are 6"),
    ),
    "asha in the shortest trial": (
        space(train__episodes={"choice": [60, 20]}) | {"scheduler": "asha", "grace_rounds": 2},
        {},
        ("20 train.episodes in rounds of 10 are 2",),
    ),
    "asha of two": (
        {"space": STEPS, "scheduler": "asha", "trials": 2},
        {},
        ("search.trials=2", "one trial in 3"),
    ),
    "pbt of three": (
        {"space": STEPS, "scheduler": "pbt", "trials": 3},
        {},
        ("search.trials=3", "at least 4"),
    ),
    "pbt by another": (
        {"space": STEPS, "scheduler": "pbt", "searcher": "optuna"},
        {},
        ("search.searcher=optuna", "mutates its trials itself"),
    ),
    "pbt that exchanges nothing": (
        {"space": STEPS, "scheduler": "pbt", "perturbation_rounds": 6},
        {},
        ("perturbation_rounds=6", "never exchange"),
    ),
    "pbt of the optimizer": (
        space(train__outer_optimizer={"choice": ["Adam", "SGD"]}) | {"scheduler": "pbt"},
        {},
        ("train.outer_optimizer: scheduler: pbt", "mid-training"),
    ),
    "pbt of parts": (
        space(inner__parts={"choice": [["*"], ["head"]]}) | {"scheduler": "pbt"},
        {},
        ("inner.parts: scheduler: pbt",),
    ),
    "pbt of steps that have factors": (
        {"space": STEPS, "scheduler": "pbt"},
        {"inner": {"learned_rates": True}},
        ("inner.steps: scheduler: pbt", "factors of its own"),
    ),
    "no trials": ({"space": STEPS, "trials": 0}, {}, ("search.trials=0", "must be at least 1")),
    "pseudo-targets without use": (
        {"space": STEPS, "pseudo_targets": ["snow"]},
        {},
        ("objective: validation judges by the targets",),
    ),
    "an unknown objective": (
        {"space": STEPS, "objective": "pseudo_target"},
        {},
        ("search.objective='pseudo_target'", "mean 'pseudo_targets'"),
    ),
    "a pseudo-target that is not mined": (
        {"space": STEPS, "objective": "pseudo_targets", "pseudo_targets": ["pixelate"]},
        {},
        ("search.pseudo_targets", "no mined experience 'pixelate'"),
    ),
    "a pseudo-target twice": (
        {"space": STEPS, "objective": "pseudo_targets", "pseudo_targets": ["snow", "SW"]},
        {},
        ("search.pseudo_targets: snow is listed twice",),
    ),
    "too few for pseudo-targets": (
        {"space": STEPS, "objective": "pseudo_targets"},
        {"mining": {"experiences": ["snow", "fog"]}},
        ("fewer than 2 experiences are left", "at least 3"),
    ),
}

CASES = {
    f"{group}: {name}": case
    for group, cases in {
        "setting": SETTINGS,
        "start": START,
        "confidence": CONFIDENCE,
        "values": VALUES,
        "sets": SETS,
        "tries": TRIES,
    }.items()
    for name, case in cases.items()
}


def overrides(search: dict[str, Any]) -> list[str]:
    """Return the section as values of `--set`, one for each setting of the space or of `search`."""
    found = [("search.space", {})] if not search.get("space") else []
    found += [(f"search.space.{name}", value) for name, value in search.get("space", {}).items()]
    found += [(f"search.{key}", value) for key, value in search.items() if key != "space"]
    return [f"{key}={yaml.safe_dump(value, default_flow_style=True, width=1000)}" for key, value in found]


def refusal_of(config: Any) -> str:
    with pytest.raises(ConfigError) as error:
        check_space(config() if callable(config) else config)
    return str(error.value)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_bad_search_is_refused_with_the_reason(case: Case) -> None:
    search, others, words = case
    message = refusal_of(lambda: parse_config(LEAST | others | {"search": search}))
    assert [w for w in words if w not in message] == [], message
    assert "\n" not in message


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_bad_search_is_refused_alike_on_the_command_line(case: Case, tmp_path: Path) -> None:
    search, others, words = case
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(LEAST | others), encoding="utf-8")
    message = refusal_of(lambda: load_config(path, overrides(search)))
    assert [w for w in words if w not in message] == [], message


def test_tune_without_a_search_states_what_to_add() -> None:
    message = refusal_of(parse_config(LEAST))
    assert "'search' is missing" in message
    assert "metarepair tune" in message


@pytest.mark.parametrize(
    ("override", "bounds"),
    [
        ("search.space.inner.rate.uniform=[0.1, 0.3]", (0.1, 0.3)),
        ("search.space.inner.rate={uniform: [0.2, 1]}", (0.2, 1.0)),
    ],
)
def test_one_setting_of_the_space_is_replaced_on_the_command_line(
    tmp_path: Path, override: str, bounds: tuple[float, float]
) -> None:
    path = tmp_path / "config.yaml"
    search = {"space": {"inner.rate": {"uniform": [0.01, 0.5]}, **STEPS}}
    path.write_text(yaml.safe_dump(LEAST | {"search": search}, sort_keys=False), encoding="utf-8")
    found = dimensions(load_config(path, [override]))
    assert [(d.name, d.values) for d in found] == [("inner.rate", bounds), ("inner.steps", (1, 2))]


def test_a_misspelt_setting_on_the_command_line_is_refused_with_near_names(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(LEAST), encoding="utf-8")
    for override, near in {
        "search.experience_sets.topk=[1]": "'search.experience_sets.top_k'",
        "search.max_concurent=1": "'search.max_concurrent'",
        "serach.trials=1": "'search'",
        "search.episodes=1": "'train.episodes'",
    }.items():
        with pytest.raises(ConfigError, match=rf"did you mean {near}"):
            load_config(path, [override])


def cutoff(**search: Any) -> Config:
    return parse_config(LEAST | rule("cutoff") | {"search": search})


def test_a_threshold_that_cuts_off_everything_is_refused_once_distances_are_known() -> None:
    near = {"snow": 5.0, "fog": 6.0, "shot_noise": 20.0, "contrast": 30.0}
    for low, refused in ((4.0, True), (5.0, False)):
        config = cutoff(space={"experiences.beta": {"uniform": [low, 40]}})
        check_space(config)
        if refused:
            with pytest.raises(
                ConfigError, match=r"experiences\.beta=4\.0 .*for gaussian_noise, .*cuts off every"
            ):
                check_distances(config, {"gaussian_noise": near})
        else:
            check_distances(config, {"gaussian_noise": near})


def test_a_threshold_is_checked_against_every_set_of_experiences() -> None:
    near = {"snow": 5.0, "fog": 6.0, "shot_noise": 20.0, "contrast": 30.0}
    beta = {"experiences.beta": {"uniform": [10, 40]}}
    check_distances(cutoff(space=beta, experience_sets={"top_k": [1, 4]}), {"gaussian_noise": near})
    far = cutoff(space=beta, experience_sets={"sets": {"near": ["snow"], "far": ["contrast", "shot_noise"]}})
    with pytest.raises(ConfigError, match=r"experiences\.beta=10\.0, experience set=far"):
        check_distances(far, {"gaussian_noise": near})
    check_distances(cutoff(space=beta, experience_sets={"free": True}), {"gaussian_noise": near})

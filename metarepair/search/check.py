"""Refuse a search that cannot be done, before its first trial.

The trials that stand for all others are built as the search builds each of its own: the drawn values become a `Config`,
and every environment chooses the experiences it learns from. An error of one of them names the values that cause it.
What a `Config` cannot know is checked by metarepair.search.rules and, for the section `search` itself, below.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

from metarepair.config.run import Config
from metarepair.config.search import TARGETS_OWN, ExperienceSets
from metarepair.search.rules import check_change, check_effects, check_kind, check_setting, refuse
from metarepair.search.space import (
    EXPERIENCE_SET,
    Dimension,
    dimensions,
    experiences_of,
    free_experiences,
    is_free,
    learners,
    search_of,
    trial_config,
)
from tasks.corruptions import category_of
from tasks.errors import ConfigError, unknown_name
from tasks.keys import keyed_generator
from tasks.sampling.confidence import confidence

MOST_CORNERS = 256  # combinations of values, up to which all of them are built
MOST_PAIRS = 2048  # built where there are more corners; a trial takes 0.3 ms to build
FEWEST_OF_A_POPULATION = 4  # pbt copies from the best quarter to the worst

Drawn = dict[str, Any]


def check_space(config: Config) -> None:
    """Raises ConfigError for a search with a trial that would be refused, or a setting that no trial depends on."""
    search = search_of(config)
    for name in search.space:
        check_setting(name)
    if search.experience_sets is not None:
        _check_sets(config, search.experience_sets)
    _check_objective(config)
    found = dimensions(config)
    if not found:
        raise ConfigError(
            "search.space is empty and there are no search.experience_sets, so there is nothing to search. Name "
            "settings and their values, as space: {inner.rate: {log_uniform: [1e-3, 0.3]}}."
        )
    for dimension in found:
        if dimension.name in search.space:
            check_kind(dimension)
    trials, names = _build_trials(config, found), [d.name for d in found]
    _check_searcher(config, found)
    _check_scheduler(config, trials, names)
    check_effects(config, trials, names)


def check_distances(config: Config, distances: Mapping[str, Mapping[str, float]]) -> None:
    """Refuses a β under `cutoff` that leaves a judged environment no experience, once the distances are known.

    distances: of each judged environment to its experiences. Of free subsets only the whole is checked: whether a
    smaller one lies beyond β is found out when it is drawn.
    """
    found = dimensions(config)
    every = {d.name: True for d in found if is_free(d.name)}
    choosing = [d for d in found if d.name.startswith("experiences.") or d.name == EXPERIENCE_SET]
    for drawn in _drawn_to_check(choosing):
        trial = trial_config(config, every | drawn)
        assert trial is not None  # all experiences are taken
        settings = trial.experiences
        for environment, far in distances.items():
            near = {name: far[name] for name in experiences_of(trial, environment, far)}
            try:
                confidence(near, rule=settings.rule, alpha=settings.alpha, beta=settings.beta)
            except ConfigError as error:
                raise _refused(drawn, f"for {environment}, {error}") from error


def _build_trials(config: Config, found: Sequence[Dimension]) -> list[Config]:
    """The trials that stand for all others. Raises ConfigError with the values for which one is refused."""
    trials = []
    for drawn in _drawn_to_check(found):
        trial = _build(config, drawn)
        if isinstance(trial, ConfigError):
            for name in list(drawn):  # leave out the values without which it is refused all the same
                fewer = {k: v for k, v in drawn.items() if k != name}
                if isinstance(refusal := _build(config, fewer), ConfigError):
                    drawn, trial = fewer, refusal
            raise _refused(drawn, str(trial)) from trial
        if trial is not None:
            trials.append(trial)
    return trials


def _build(config: Config, drawn: Drawn) -> Config | ConfigError | None:
    """A trial's settings, or why it is refused; None where a free subset leaves an environment nothing."""
    environment = ""
    try:
        trial = trial_config(config, drawn)
        for environment in learners(config) if trial is not None else ():
            assert trial is not None
            experiences_of(trial, environment)
    except ConfigError as error:
        return ConfigError(f"for {environment}, {error}") if environment else error
    return trial


def _refused(drawn: Drawn, text: str) -> ConfigError:
    values = ", ".join(f"{name}={value}" for name, value in drawn.items())
    return ConfigError(
        f"search: a trial with {values or 'the settings as they are'} would be refused: {text}"
    )


def _drawn_to_check(found: Sequence[Dimension]) -> Iterator[Drawn]:
    """The combinations that decide whether a space is refused. A dimension's values are its choices, or its two ends.

    Each value beside the first of every other dimension; then all combinations, up to MOST_CORNERS. A larger space has
    every two values of every two dimensions beside the first of the others, since a rule of `Config` relates two
    settings at most; of more pairs than MOST_PAIRS so many, drawn by a key.
    """
    first = {d.name: d.values[0] for d in found}
    yield from (first | {d.name: value} for d in found for value in d.values)
    if math.prod(len(d.values) for d in found) <= MOST_CORNERS:
        yield from (dict(zip(first, values, strict=True)) for values in product(*(d.values for d in found)))
        return
    pairs = [
        {a.name: v, b.name: w} for a, b in combinations(found, 2) for v, w in product(a.values, b.values)
    ]
    if len(pairs) > MOST_PAIRS:
        order = keyed_generator("search-check").permutation(len(pairs))
        pairs = [pairs[number] for number in order[:MOST_PAIRS]]
    yield from (first | pair for pair in pairs)


def _check_sets(config: Config, sets: ExperienceSets) -> None:
    mined = config.mining.experiences
    for name in ("experiences.choice", "experiences.top_k", "experiences.names"):
        if name in search_of(config).space:
            refuse(name, "search.experience_sets chooses the experiences already; give one of the two.")
    named = {f"sets.{key}": names for key, names in (sets.sets or {}).items()}
    if isinstance(sets.free, tuple):
        named["free"] = sets.free
    for where, names in named.items():
        _check_mined(f"search.experience_sets.{where}", names, mined)
    for category in sets.categories or ():
        if category != TARGETS_OWN and category not in [category_of(name) for name in mined]:
            raise ConfigError(
                f"search.experience_sets.categories: {category} has no mined experience. Mined are: {', '.join(mined)}"
            )
    if sets.free is not None:
        _check_free(config, sets.free)


def _check_free(config: Config, given: Sequence[str] | bool) -> None:
    names = free_experiences(config)
    useless = [] if isinstance(given, bool) else [name for name in given if name not in names]
    if useless:
        raise ConfigError(
            f"search.experience_sets.free: {useless[0]} is the one target itself, which never learns from its own "
            "name. Leave it out."
        )
    if len(names) < 2:
        raise ConfigError(
            f"search.experience_sets.free has {len(names)} experience{'s' * (len(names) != 1)} to take or leave "
            f"({', '.join(names) or 'none'}), and a trial needs at least one, so there is nothing to choose. Name or "
            "mine at least two."
        )


def _check_mined(where: str, names: Sequence[str], mined: Sequence[str]) -> None:
    for name in names:
        if name not in mined:
            raise ConfigError(
                f"{where}: {unknown_name('mined experience', name, mined)}. Add it to mining.experiences, or leave "
                "it out."
            )


def _check_objective(config: Config) -> None:
    search, mined = search_of(config), config.mining.experiences
    if search.objective == "validation":
        if search.pseudo_targets:
            raise ConfigError(
                "search.pseudo_targets are given, and search.objective: validation judges by the targets. Set "
                "objective: pseudo_targets, or leave them out."
            )
        return
    _check_mined("search.pseudo_targets", search.pseudo_targets, mined)
    if len(mined) < 3:
        raise ConfigError(
            f"search.objective: pseudo_targets leaves one experience out in turn, and of the {len(mined)} in "
            f"mining.experiences fewer than 2 experiences are left to learn from. Mine at least 3, or set objective: "
            "validation."
        )


def _check_searcher(config: Config, found: Sequence[Dimension]) -> None:
    search = search_of(config)
    for dimension in found:
        if search.searcher == "grid" and dimension.kind in ("uniform", "log_uniform"):
            refuse(
                dimension.name,
                f"searcher: grid tries every value, and {dimension.kind} has no end of them. Give choice, or "
                "searcher: random or optuna.",
            )


def _check_scheduler(config: Config, trials: Sequence[Config], searched: Sequence[str]) -> None:
    search = search_of(config)
    episodes = min(trial.train.episodes for trial in trials)
    rounds = config.train.rounds_of(episodes)
    have = f"{episodes} train.episodes in rounds of {config.train.round_episodes} are {rounds}"
    if search.scheduler == "asha":
        if search.grace_rounds >= rounds:
            raise ConfigError(
                f"search.grace_rounds={search.grace_rounds}: {have}, so asha would end no trial early. Give fewer "
                "grace_rounds than rounds, shorter rounds, or scheduler: none."
            )
        if search.searcher != "grid" and search.trials < search.reduction:
            raise ConfigError(
                f"search.trials={search.trials}: asha keeps one trial in {search.reduction:g} (search.reduction), and "
                "there are fewer. Give more trials, or scheduler: none."
            )
    if search.scheduler == "pbt":
        _check_population(config, searched, rounds, have)


def _check_population(config: Config, searched: Sequence[str], rounds: int, have: str) -> None:
    search = search_of(config)
    if search.searcher != "random":
        raise ConfigError(
            f"search.searcher={search.searcher}: scheduler: pbt draws and mutates its trials itself. Set searcher: "
            "random, or scheduler: asha or none."
        )
    if search.trials < FEWEST_OF_A_POPULATION:
        raise ConfigError(
            f"search.trials={search.trials}: scheduler: pbt copies from the best quarter of its trials to the worst, "
            f"which takes at least {FEWEST_OF_A_POPULATION}. Give more trials, or scheduler: asha or none."
        )
    if search.perturbation_rounds >= rounds:
        raise ConfigError(
            f"search.perturbation_rounds={search.perturbation_rounds}: {have}, so pbt would never exchange anything. "
            "Give fewer perturbation_rounds than rounds, or shorter rounds."
        )
    check_change(config, searched)

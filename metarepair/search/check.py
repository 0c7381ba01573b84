"""A configuration with a `search` in; ConfigError out for whatever a trial would be refused for, before the first one.

Every choice, both ends of every range, and their combinations go through the settings' own validation: all corners of
the space where there are few, else some of its points, keyed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from metarepair.config.run import Config
from metarepair.config.search import TARGETS_OWN, ExperienceSets
from metarepair.search.rules import (
    check_change,
    check_effects,
    check_kind,
    check_setting,
    possible,
    refuse,
)
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

CORNERS = 256  # all of them are tried where there are no more
DRAWS = 64  # else so many points
FEWEST_OF_A_POPULATION = 4  # pbt copies from the best quarter to the worst

Drawn = dict[str, Any]


def check(config: Config) -> None:
    """Raises ConfigError; what each refusal is for stands in its message."""
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
    by_name = {d.name: d for d in found}
    for name in search.space:
        check_kind(by_name[name])
    _check_values(config, found)
    _check_searcher(config, found)
    _check_scheduler(config, by_name)
    check_effects(config, by_name, lambda: _most_experiences(config, by_name))


def check_distances(config: Config, distances: Mapping[str, Mapping[str, float]]) -> None:
    """Refuses a β under `cutoff` that leaves a judged environment nothing, now that distances are known.

    distances: of each judged environment to its experiences. Of free subsets, the one with all is looked at: a smaller
    one that lies wholly beyond β can only be found out when it is drawn.
    """
    mine = [d for d in dimensions(config) if d.name.partition(".")[0] == "experiences"]
    mine += [d for d in dimensions(config) if d.name == EXPERIENCE_SET]
    every = {d.name: True for d in dimensions(config) if is_free(d.name)}
    for drawn in _combinations(config, mine):
        trial = trial_config(config, every | drawn)
        assert trial is not None  # all experiences are taken
        settings = trial.experiences
        for environment, found in distances.items():
            near = {name: found[name] for name in experiences_of(trial, environment, found)}
            try:
                confidence(near, rule=settings.rule, alpha=settings.alpha, beta=settings.beta)
            except ConfigError as error:
                raise _refused(drawn, f"for {environment}, {error}") from error


def rounds_of(episodes: int, round_episodes: int) -> int:
    """Rounds of a meta-training, the last one perhaps shorter."""
    return math.ceil(episodes / round_episodes)


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


def _check_scheduler(config: Config, by_name: Mapping[str, Dimension]) -> None:
    search = search_of(config)
    episodes = min(possible(config, by_name, "train.episodes"))
    rounds = rounds_of(episodes, config.train.round_episodes)
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
        _check_population(config, by_name, rounds, have)


def _check_population(config: Config, by_name: Mapping[str, Dimension], rounds: int, have: str) -> None:
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
    check_change(config, by_name)


def _check_values(config: Config, found: Sequence[Dimension]) -> None:
    for drawn in _combinations(config, found):
        if _refusal(config, drawn) is not None:
            for name in list(drawn):  # down to those that are refused beside the configuration's own values
                fewer = {k: v for k, v in drawn.items() if k != name}
                drawn = fewer if _refusal(config, fewer) is not None else drawn
            raise _refused(drawn, str(_refusal(config, drawn)))


def _refused(drawn: Drawn, text: str) -> ConfigError:
    values = ", ".join(f"{name}={value}" for name, value in drawn.items())
    return ConfigError(
        f"search: a trial with {values or 'the settings as they are'} would be refused: {text}"
    )


def _refusal(config: Config, drawn: Drawn) -> str | None:
    """Why a trial cannot be; None where it can."""
    environment = ""
    try:
        trial = trial_config(config, drawn)
        for environment in learners(config) if trial is not None else ():
            assert trial is not None
            experiences_of(trial, environment)
    except ConfigError as error:
        return f"for {environment}, {error}" if environment else str(error)
    return None


def _combinations(config: Config, found: Sequence[Dimension]) -> Iterator[Drawn]:
    """Every value with the first of all others; then all corners, or points of the space."""
    first = {d.name: d.values[0] for d in found}
    for dimension in found:
        yield from (first | {dimension.name: value} for value in dimension.values)
    if math.prod(len(d.values) for d in found) <= CORNERS:
        for values in product(*(d.values for d in found)):
            yield dict(zip(first, values, strict=True))
        return
    for number in range(DRAWS):
        yield {d.name: _draw(d, config.seed, number) for d in found}


def _draw(dimension: Dimension, seed: int, number: int) -> Any:
    generator = keyed_generator("search-check", seed, number, dimension.name)
    low, high = dimension.values[0], dimension.values[-1]
    match dimension.kind:
        case "choice":
            return dimension.values[int(generator.integers(len(dimension.values)))]
        case "integers":
            return int(generator.integers(low, high + 1))
        case "uniform":
            return float(generator.uniform(low, high))
        case "log_uniform":
            return math.exp(generator.uniform(math.log(low), math.log(high)))


def _most_experiences(config: Config, by_name: Mapping[str, Dimension]) -> int:
    """The most experiences that any environment has in any trial."""
    if any(map(is_free, by_name)):
        return len(free_experiences(config))
    chosen = [by_name[name] for name in by_name if name == EXPERIENCE_SET]
    chosen += [
        by_name[f"experiences.{key}"]
        for key in ("choice", "top_k", "names")
        if f"experiences.{key}" in by_name
    ]
    trials = [trial_config(config, drawn) for drawn in _combinations(config, chosen)] if chosen else [config]
    return max(len(experiences_of(t, e)) for t in trials if t is not None for e in learners(config))

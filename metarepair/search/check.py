"""Refuse an impossible search before its first trial.

Sample trials are built in the same way as the search builds its own: the drawn values become a `Config`, and every
environment chooses the experiences it learns from. The error of a refused trial names the values that cause it. Rules
that a `Config` cannot check are in metarepair.search.rules, and those of the section `search` itself below.
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
from tasks.environments import category_of
from tasks.errors import ConfigError, unknown_name
from tasks.keys import keyed_generator
from tasks.sampling.confidence import confidence

MOST_CORNERS = 256  # combinations of values; all are built up to this number
MOST_PAIRS = 2048  # pairs of values built if there are more combinations; building a trial takes 0.3 ms
FEWEST_OF_A_POPULATION = 4  # trials: pbt copies from the best quarter to the worst

Drawn = dict[str, Any]


def check_space(config: Config) -> None:
    """Raise ConfigError for a search with a trial that would be refused, or a setting that no trial depends on."""
    search = search_of(config)
    for name in search.space:
        check_setting(name)
    if search.experience_sets is not None:
        _check_sets(config, search.experience_sets)
    _check_objective(config)
    found = dimensions(config)
    if not found:
        raise ConfigError(
            "search.space is empty and there are no search.experience_sets, so there is nothing to search. List "
            "settings with their values, such as space: {inner.rate: {log_uniform: [1e-3, 0.3]}}."
        )
    for dimension in found:
        if dimension.name in search.space:
            check_kind(dimension)
    trials, names = _build_trials(config, found), [d.name for d in found]
    _check_searcher(config, found)
    _check_scheduler(config, trials, names)
    check_effects(config, trials, names)


def check_distances(config: Config, distances: Mapping[str, Mapping[str, float]]) -> None:
    """Raise ConfigError for a β of `cutoff` that leaves a judged environment no experience, given the distances.

    distances: from each judged environment to its experiences. Of the subsets of `free`, only the full one is checked;
    a smaller one that lies beyond β fails when it is drawn.
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
    """Build the sample trials. Raises ConfigError with the values for which one is refused."""
    trials = []
    for drawn in _drawn_to_check(found):
        trial = _build(config, drawn)
        if isinstance(trial, ConfigError):
            for name in list(drawn):  # drop the values that do not matter for the refusal
                fewer = {k: v for k, v in drawn.items() if k != name}
                if isinstance(refusal := _build(config, fewer), ConfigError):
                    drawn, trial = fewer, refusal
            raise _refused(drawn, str(trial)) from trial
        if trial is not None:
            trials.append(trial)
    return trials


def _build(config: Config, drawn: Drawn) -> Config | ConfigError | None:
    """Return a trial's settings, or the error that refuses it; None if a free subset leaves an environment nothing."""
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
    """Yield the combinations of values to check. The values of a dimension are its choices, or the ends of its range.

    First each value, with the first value of every other dimension; then all combinations if there are at most
    MOST_CORNERS. A larger space gets all pairs of values of two dimensions, with the first values of the others, since
    a rule of `Config` relates at most two settings; of more than MOST_PAIRS pairs, that many are drawn by a key.
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
            refuse(name, "search.experience_sets chooses the experiences already; use only one of the two.")
    named = {f"sets.{key}": names for key, names in (sets.sets or {}).items()}
    if isinstance(sets.free, tuple):
        named["free"] = sets.free
    for where, names in named.items():
        _check_mined(f"search.experience_sets.{where}", names, mined)
    for category in sets.categories or ():
        if category != TARGETS_OWN and category not in [category_of(name) for name in mined]:
            raise ConfigError(
                f"search.experience_sets.categories: {category} has no mined experience. Mined are: "
                f"{', '.join(mined)}. Leave the category out, or mine one of its corruptions."
            )
    if sets.free is not None:
        _check_free(config, sets.free)


def _check_free(config: Config, given: Sequence[str] | bool) -> None:
    names = free_experiences(config)
    useless = [] if isinstance(given, bool) else [name for name in given if name not in names]
    if useless:
        raise ConfigError(
            f"search.experience_sets.free: {useless[0]} is the one target itself, and a target never learns from its "
            "own corruption. Leave it out."
        )
    if len(names) < 2:
        raise ConfigError(
            f"search.experience_sets.free has {len(names)} experience{'s' * (len(names) != 1)} to take or leave "
            f"({', '.join(names) or 'none'}), and a trial needs at least one, so there is nothing to choose. List or "
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
    if search.objective == "pseudo_targets" and config.train.start == "joint":
        raise ConfigError(
            "train.start: joint starts from weights that have learned from all experiences, and search.objective: "
            "pseudo_targets judges by experiences that are left out. Set train.start: deployed, or objective: "
            "validation."
        )
    if search.objective == "validation":
        if search.pseudo_targets:
            raise ConfigError(
                "search.pseudo_targets are given, but search.objective: validation judges by the targets. Set "
                "objective: pseudo_targets, or leave out search.pseudo_targets."
            )
        return
    _check_mined("search.pseudo_targets", search.pseudo_targets, mined)
    if len(mined) < 3:
        raise ConfigError(
            f"search.objective: pseudo_targets leaves out each experience in turn, and with {len(mined)} in "
            f"mining.experiences, fewer than 2 experiences are left to learn from. Mine at least 3, or set objective: "
            "validation."
        )


def _check_searcher(config: Config, found: Sequence[Dimension]) -> None:
    search = search_of(config)
    for dimension in found:
        if search.searcher == "grid" and dimension.kind in ("uniform", "log_uniform"):
            refuse(
                dimension.name,
                f"searcher: grid tries every value, and {dimension.kind} has infinitely many. Use choice, or set "
                "searcher: random or optuna.",
            )


def _check_scheduler(config: Config, trials: Sequence[Config], searched: Sequence[str]) -> None:
    search = search_of(config)
    episodes = min(trial.train.episodes for trial in trials)
    rounds = config.train.rounds_of(episodes)
    have = f"{episodes} train.episodes in rounds of {config.train.round_episodes} are {rounds} rounds"
    if search.scheduler == "asha":
        if search.grace_rounds >= rounds:
            raise ConfigError(
                f"search.grace_rounds={search.grace_rounds}: {have}, so asha would stop no trial early. Set fewer "
                "grace_rounds than rounds, shorter rounds, or scheduler: none."
            )
        if search.searcher != "grid" and search.trials < search.reduction:
            raise ConfigError(
                f"search.trials={search.trials}: asha keeps one trial in {search.reduction:g} (search.reduction), and "
                "there are fewer trials. Set more trials, or scheduler: none."
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
            f"which takes at least {FEWEST_OF_A_POPULATION} trials. Set more trials, or scheduler: asha or none."
        )
    if search.perturbation_rounds >= rounds:
        raise ConfigError(
            f"search.perturbation_rounds={search.perturbation_rounds}: {have}, so pbt would never exchange anything. "
            "Set fewer perturbation_rounds than rounds, or shorter rounds."
        )
    check_change(config, searched)

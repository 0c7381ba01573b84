"""A search's dimensions in; Tune's space, searcher and scheduler out, and what a trial of them drew in plain values.

Choices go to Tune by their number: values may be lists, and equal ones of different type (1, 1.0, True) stay apart.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from metarepair.config.run import Config
from metarepair.search.space import Dimension, dimensions, search_of
from tasks.keys import keyed_generator

OBJECTIVE, ROUND, OVER = "objective", "round", "over"  # what a trial reports
PREFIX = "trial-"


def param_space(config: Config) -> dict[str, Any]:
    """What Tune draws each trial from: a number of the choices, or a value of the range."""
    grid = search_of(config).searcher == "grid"
    return {d.name: _grid(d) if grid else _domain(d) for d in dimensions(config)}


def _domain(dimension: Dimension) -> Any:
    from ray import tune

    low, high = dimension.values[0], dimension.values[-1]
    match dimension.kind:
        case "choice":
            return tune.choice(list(range(len(dimension.values))))
        case "uniform":
            return tune.uniform(low, high)
        case "log_uniform":
            return tune.loguniform(low, high)
        case "integers":
            return tune.randint(low, high + 1)


def _grid(dimension: Dimension) -> Any:
    from ray import tune

    return tune.grid_search(_each(dimension))


def _each(dimension: Dimension) -> list[int]:
    """What stands for each value of a choice, or of a range of whole numbers, in Tune's space."""
    low, high = dimension.values[0], dimension.values[-1]
    return list(range(len(dimension.values)) if dimension.kind == "choice" else range(low, high + 1))


def drawn_of(found: Sequence[Dimension], config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial, as the settings have them, from what Tune drew."""
    return {d.name: _value(d, config[d.name]) for d in found}


def _value(dimension: Dimension, drawn: Any) -> Any:
    plain = drawn.item() if isinstance(drawn, np.generic) else drawn
    if dimension.kind == "choice":
        return dimension.values[int(plain)]
    return int(plain) if dimension.kind == "integers" else float(plain)


def count_trials(config: Config) -> int:
    """Trials in all: with searcher: grid, so many of each point."""
    search = search_of(config)
    points = math.prod(len(_each(d)) for d in dimensions(config)) if search.searcher == "grid" else 1
    return search.trials * points


def most_rounds(config: Config) -> int:
    """Rounds of the longest trial."""
    searched = [max(d.values) for d in dimensions(config) if d.name == "train.episodes"]
    return config.train.rounds_of(*searched or [config.train.episodes])


def build_searcher(config: Config, at_once: int) -> Any:
    """Who draws the trials; with the same seed the same ones. Optuna's also depend on the results that it has seen.

    A population is drawn at once, and those of it wait that there is no room for.
    """
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.basic_variant import BasicVariantGenerator
    from ray.tune.search.optuna import OptunaSearch

    search, seed = search_of(config), search_seed(config)
    if search.searcher == "optuna":
        return ConcurrencyLimiter(OptunaSearch(seed=seed), max_concurrent=at_once)
    unlimited = search.scheduler == "pbt"
    return BasicVariantGenerator(random_state=seed, max_concurrent=0 if unlimited else at_once)


def search_seed(config: Config) -> int:
    """The key of all draws of a search."""
    return int(keyed_generator("search", config.seed).integers(2**31))


@contextmanager
def seeded(config: Config) -> Iterator[None]:
    """Python's and NumPy's own generators, seeded for the time of the block: pbt draws its exchanges from them."""
    before = random.getstate(), np.random.get_state()
    random.seed(search_seed(config))
    np.random.seed(search_seed(config))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def build_scheduler(config: Config) -> Any:
    """Who ends trials early, or mutates them; None for nobody."""
    from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining

    search = search_of(config)
    match search.scheduler:
        case "none":
            return None
        case "asha":
            return ASHAScheduler(
                time_attr=ROUND,
                max_t=most_rounds(config) + 1,  # the last round is the trial's own to end with
                grace_period=search.grace_rounds,
                reduction_factor=search.reduction,
            )
        case "pbt":
            found = dimensions(config)
            return PopulationBasedTraining(
                time_attr=ROUND,
                perturbation_interval=search.perturbation_rounds,
                hyperparam_mutations={d.name: _mutation(d) for d in found},
                custom_explore_fn=Bounds(found),
                synch=True,  # else who is exchanged with whom depends on which trial happens to be first
            )


def _mutation(dimension: Dimension) -> Any:
    """Of a choice the neighbours in the file's order, now and then any; of a range a fifth more or less, or any."""
    return _each(dimension) if dimension.kind == "choice" else _domain(dimension)


@dataclass(frozen=True)
class Bounds:
    """Brings mutated settings back into their ranges: pbt's factors lead out of them."""

    dimensions: tuple[Dimension, ...]

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        ranges = {d.name: d.values for d in self.dimensions if d.kind != "choice"}
        return config | {name: min(max(config[name], low), high) for name, (low, high) in ranges.items()}


@dataclass(frozen=True)
class TrialName:
    """`trial-0001`, … in the order of drawing, the same in every run of a search: Tune's own names are random."""

    first: int  # that Tune counts from

    def __call__(self, trial: Any) -> str:
        return f"{PREFIX}{int(trial.experiment_tag.partition('_')[0]) - self.first + 1:04d}"


def build_names(config: Config) -> TrialName:
    """The names of trials: Tune counts those of a Searcher from 1, its own variants from 0."""
    return TrialName(first=1 if search_of(config).searcher == "optuna" else 0)

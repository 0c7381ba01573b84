"""Build Tune's space, searcher and scheduler from a search, and turn Tune's draws back into plain values.

Tune sees a choice as an index: values may be lists, and equal values of different types (1, 1.0, True) stay distinct.
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
    """The space that Tune draws trials from: an index into the choices, or a value of the range."""
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
    """Tune's value for each value of a choice (its index), or of a range of integers (itself)."""
    low, high = dimension.values[0], dimension.values[-1]
    return list(range(len(dimension.values)) if dimension.kind == "choice" else range(low, high + 1))


def drawn_of(searched: Sequence[Dimension], config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial, as the settings have them, from Tune's draws in `config`."""
    return {d.name: _value(d, config[d.name]) for d in searched}


def _value(dimension: Dimension, drawn: Any) -> Any:
    plain = drawn.item() if isinstance(drawn, np.generic) else drawn
    if dimension.kind == "choice":
        return dimension.values[int(plain)]
    return int(plain) if dimension.kind == "integers" else float(plain)


def count_trials(config: Config) -> int:
    """The total number of trials. With `searcher: grid`, search.trials is the number per point."""
    search = search_of(config)
    points = math.prod(len(_each(d)) for d in dimensions(config)) if search.searcher == "grid" else 1
    return search.trials * points


def most_rounds(config: Config) -> int:
    """The number of rounds of the longest trial."""
    searched = [max(d.values) for d in dimensions(config) if d.name == "train.episodes"]
    return config.train.rounds_of(*searched or [config.train.episodes])


def build_searcher(config: Config, at_once: int) -> Any:
    """The searcher that draws the trials, seeded. Optuna's draws also depend on the results that it has seen.

    A population of pbt is drawn all at once; its trials wait until there is room for them.
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
    """The seed of all draws of a search."""
    return int(keyed_generator("search", config.seed).integers(2**31))


@contextmanager
def seeded(config: Config) -> Iterator[None]:
    """Seed Python's and NumPy's global generators inside the block: pbt draws its exchanges from them."""
    before = random.getstate(), np.random.get_state()
    random.seed(search_seed(config))
    np.random.seed(search_seed(config))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def build_scheduler(config: Config) -> Any:
    """The scheduler that stops trials early or mutates them; None for `scheduler: none`."""
    from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining

    search = search_of(config)
    match search.scheduler:
        case "none":
            return None
        case "asha":
            return ASHAScheduler(
                time_attr=ROUND,
                max_t=most_rounds(config) + 1,  # + 1: the trial itself ends after its last round
                grace_period=search.grace_rounds,
                reduction_factor=search.reduction,
            )
        case "pbt":
            searched = dimensions(config)
            return PopulationBasedTraining(
                time_attr=ROUND,
                perturbation_interval=search.perturbation_rounds,
                hyperparam_mutations={d.name: _mutation(d) for d in searched},
                custom_explore_fn=Bounds(searched),
                synch=True,  # otherwise the exchanges depend on which trial happens to be first
            )


def _mutation(dimension: Dimension) -> Any:
    """The values that pbt may move to.

    A choice moves to a neighbour in the file's order, sometimes to any value; a range value changes by a fifth, or is
    drawn again.
    """
    return _each(dimension) if dimension.kind == "choice" else _domain(dimension)


@dataclass(frozen=True)
class Bounds:
    """Clips mutated settings to their ranges: pbt's factors can leave them."""

    dimensions: tuple[Dimension, ...]

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        ranges = {d.name: d.values for d in self.dimensions if d.kind != "choice"}
        return config | {name: min(max(config[name], low), high) for name, (low, high) in ranges.items()}


@dataclass(frozen=True)
class TrialName:
    """Names trials `trial-0001`, … in the order of drawing, the same in every run: Tune's own names are random."""

    first: int  # the number of Tune's first trial

    def __call__(self, trial: Any) -> str:
        return f"{PREFIX}{int(trial.experiment_tag.partition('_')[0]) - self.first + 1:04d}"


def build_names(config: Config) -> TrialName:
    """The namer of trials: Tune numbers a Searcher's trials from 1, its own variants from 0."""
    return TrialName(first=1 if search_of(config).searcher == "optuna" else 0)

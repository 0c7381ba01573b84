"""The dimensions of a search, the settings of its trials, and the environments that judge them.

A dimension is a dotted setting, the set of experiences to learn from, or whether to learn from one experience.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.config.search import TARGETS_OWN, Distribution, ExperienceSets, SearchConfig
from tasks.environments import category_of
from tasks.errors import ConfigError
from tasks.sampling.confidence import choose_experiences

Kind = Literal["choice", "uniform", "log_uniform", "integers"]

EXPERIENCE_SET = "experience set"  # the dimension of top_k, categories and sets
FREE = (
    "experience "  # prefix of the dimensions of `free`, one for each experience; no corruption is named "set"
)


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A dimension of the search space, of which a trial draws one value. values: the choices, or both bounds."""

    name: str
    kind: Kind
    values: tuple[Any, ...]


def is_free(name: str) -> bool:
    """Whether a dimension decides if one experience is learned from."""
    return name.startswith(FREE) and name != EXPERIENCE_SET


def search_of(config: Config) -> SearchConfig:
    """Return the section `search`. Raises ConfigError if there is none."""
    if config.search is None:
        raise ConfigError(
            "the setting 'search' is missing, and `metarepair tune` needs it. Add search: {space: …}, as in "
            "tune_configs/search_smoke.yaml, or run `metarepair run` instead."
        )
    return config.search


def dimensions(config: Config) -> tuple[Dimension, ...]:
    """Return the dimensions of the search, in the file's order, with the sets of experiences last."""
    search = search_of(config)
    settings = [_dimension(name, found) for name, found in search.space.items()]
    if search.experience_sets is None:
        return tuple(settings)
    return (*settings, *_set_dimensions(config, search.experience_sets))


def judged_environments(config: Config) -> tuple[str, ...]:
    """Return the environments whose held-out examples judge a trial: the targets, or the pseudo-targets."""
    search = search_of(config)
    if search.objective == "validation":
        return config.targets
    return search.pseudo_targets or config.mining.experiences


def trial_config(config: Config, drawn: Mapping[str, Any]) -> Config | None:
    """Return the settings of one trial, without `search`. Raises ConfigError if they contradict each other.

    None if the drawn subset of experiences leaves a target or a judged environment nothing to learn from.
    """
    settings = {name: value for name, value in drawn.items() if not is_free(name)}
    values = config.model_dump(mode="json", exclude={"search", "preparation_budget"})
    if len(settings) < len(drawn):
        taken = [name for name in config.mining.experiences if drawn.get(FREE + name)]
        if any(set(taken) <= {environment} for environment in learners(config)):
            return None
        values["experiences"] |= _listed(taken)
    if EXPERIENCE_SET in settings:
        values["experiences"] |= _set_settings(config, _plain(settings.pop(EXPERIENCE_SET)))
    for name, value in settings.items():
        *sections, key = name.split(".")
        group = values
        for section in sections:
            group = group[section]
        group[key] = _plain(value)
    return parse_config(values, where="a trial of the search")


def learners(config: Config) -> tuple[str, ...]:
    """Return the environments that learn: the judged ones, and the targets that the best trial's settings are for."""
    return tuple(dict.fromkeys((*judged_environments(config), *config.targets)))


def experiences_of(
    config: Config, environment: str, distances: Mapping[str, float] | None = None
) -> tuple[str, ...]:
    """Return the experiences usable for this environment.

    Raises ConfigError if there are none, and otherwise as `choose_experiences` does. Without distances, the choice
    `top_k` returns the right number of experiences, but not the right ones.
    """
    settings = config.experiences
    return choose_experiences(
        dict.fromkeys(config.mining.experiences, 0.0) if distances is None else distances,
        choice=settings.choice,
        top_k=settings.top_k,
        names=settings.names,
        target=environment,
        category_of=category_of,
    )


def _dimension(name: str, found: Distribution) -> Dimension:
    for kind in get_args(Kind):
        values = getattr(found, kind)
        if values is not None:
            return Dimension(name=name, kind=kind, values=tuple(values))
    raise AssertionError(f"{name} has no values")  # a Distribution has exactly one kind


def _set_dimensions(config: Config, sets: ExperienceSets) -> list[Dimension]:
    if sets.free is None:
        values = sets.top_k or sets.categories or tuple(sets.sets or ())
        return [Dimension(name=EXPERIENCE_SET, kind="choice", values=values)]
    return [
        Dimension(name=FREE + name, kind="choice", values=(True, False)) for name in free_experiences(config)
    ]


def free_experiences(config: Config) -> tuple[str, ...]:
    """Return the experiences of `free` that some environment can learn from."""
    sets = search_of(config).experience_sets
    given = () if sets is None or sets.free is None else sets.free
    names = config.mining.experiences if given is True else given
    return tuple(name for name in names if set(judged_environments(config)) != {name})


def _set_settings(config: Config, value: str | int) -> dict[str, Any]:
    """Return the settings of `experiences` for one of the sets."""
    sets = search_of(config).experience_sets
    assert sets is not None  # the value was drawn from it
    if sets.top_k:
        return {"choice": "top_k", "top_k": value, "names": []}
    if sets.sets:
        return _listed(sets.sets[str(value)])
    if value == TARGETS_OWN:
        return {"choice": "category", "top_k": None, "names": []}
    return _listed([name for name in config.mining.experiences if category_of(name) == value])


def _listed(names: list[str] | tuple[str, ...]) -> dict[str, Any]:
    return {"choice": "list", "top_k": None, "names": list(names)}


def _plain(value: Any) -> Any:
    """Return a NumPy number, as searchers may draw it, as a Python number, which strict settings need."""
    return value.item() if isinstance(value, np.generic) else value

"""The section `search` of a configuration: what a search tries, and how it is judged.

Each setting is checked here on its own. `metarepair.search.check` checks that the whole can be searched.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from metarepair.config.environments import resolve_name
from metarepair.config.section import Count, Positive, Section, Whole
from tasks.corruptions import Category
from tasks.environments import USERS
from tasks.errors import unknown_name

Bounds = tuple[float, float]

TARGETS_OWN = "target"  # stands for the category of the target that a trial is for
KINDS = ("choice", "uniform", "log_uniform", "integers")
WAYS = "{choice: […]}, {uniform: [a, b]}, {log_uniform: [a, b]} or {integers: [a, b]}"


class Distribution(Section):
    """The values that a search tries for one setting: exactly one of these."""

    choice: tuple[Any, ...] | None = Field(
        None, description="A list of values, any of which is drawn; at least one, each once."
    )
    uniform: Bounds | None = Field(
        None, description="Real numbers between [smallest, largest], drawn uniformly."
    )
    log_uniform: Bounds | None = Field(
        None,
        description="Real numbers between [smallest, largest], drawn uniformly in the logarithm; above 0.",
    )
    integers: tuple[Whole, Whole] | None = Field(
        None, description="Whole numbers between [smallest, largest], both included, drawn uniformly."
    )

    @field_validator("choice", mode="before")
    @classmethod
    def _some_values(cls, values: Any) -> Any:
        return None if values is None else _list_of("value", values)

    @field_validator("uniform", "log_uniform", mode="before")
    @classmethod
    def _real_bounds(cls, bounds: Any) -> Any:
        return None if bounds is None else _bounds("numbers", bounds, (int, float))

    @field_validator("integers", mode="before")
    @classmethod
    def _whole_bounds(cls, bounds: Any) -> Any:
        return None if bounds is None else _bounds("whole numbers", bounds, (int,))

    @field_validator("log_uniform")
    @classmethod
    def _above_zero(cls, bounds: Bounds | None) -> Bounds | None:
        if bounds is not None and bounds[0] <= 0:
            raise ValueError(
                f"{_words(bounds)} reaches {bounds[0]:g}, whose logarithm is not finite; start above 0, or use "
                "uniform"
            )
        return bounds

    @model_validator(mode="after")
    def _exactly_one(self) -> Distribution:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            came = f"{' and '.join(given)} are given" if given else "no values are given"
            raise ValueError(f"{came}; give exactly one of {WAYS}")
        return self


class ExperienceSets(Section):
    """The sets of experiences that a search tries: exactly one of these."""

    top_k: tuple[Positive, ...] | None = Field(
        None,
        description="Numbers k, any of which is drawn: the k nearest experiences; at least 1, each once.",
    )
    categories: tuple[str, ...] | None = Field(
        None,
        description="Categories, any of which is drawn: all its experiences; `environment` is that of your own images, "
        "and `target` stands for the target's own category.",
    )
    sets: dict[str, tuple[str, ...]] | None = Field(
        None, description="Named lists of experiences, any of which is drawn; no two alike."
    )
    free: tuple[str, ...] | Literal[True] | None = Field(
        None,
        description="Experiences, any subset of which is drawn, each included or left out; `true`: all that are "
        "mined.",
    )

    @field_validator("top_k", mode="before")
    @classmethod
    def _numbers(cls, numbers: Any) -> Any:
        return None if numbers is None else _list_of("number", numbers)

    @field_validator("categories", mode="before")
    @classmethod
    def _known(cls, names: Any) -> Any:
        known = (*get_args(Category), USERS, TARGETS_OWN)
        for name in () if names is None else _list_of("category", names):
            if name not in known:
                raise ValueError(unknown_name("category", str(name), known))
        return names

    @field_validator("sets", mode="before")
    @classmethod
    def _named_lists(cls, sets: Any) -> Any:
        if sets is None:
            return None
        if not isinstance(sets, dict) or not sets:
            raise ValueError(
                f"{_words(sets)} is not a group of named lists; write {{near: [snow, fog], all_noise: […]}}"
            )
        found = {str(name): _corruptions(f"the set {name!r}", names) for name, names in sets.items()}
        times = Counter(frozenset(names) for names in found.values())
        alike = [name for name, names in found.items() if times[frozenset(names)] > 1]
        if alike:
            raise ValueError(f"{' and '.join(alike)} hold the same experiences; list each set once")
        return found

    @field_validator("free", mode="before")
    @classmethod
    def _all_or_some(cls, names: Any) -> Any:
        return names if names is None or names is True else _corruptions("free", names)

    @model_validator(mode="after")
    def _exactly_one(self) -> ExperienceSets:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            came = f"{' and '.join(given)} are given" if given else "no sets are given"
            raise ValueError(f"{came}; give exactly one of {', '.join(type(self).model_fields)}")
        return self


class SearchConfig(Section):
    """A search by Ray Tune: what is varied, how trials are drawn, and how they are judged."""

    space: dict[str, Distribution] = Field(
        default_factory=dict,
        description="Settings to vary, by dotted name such as `inner.rate`, with the values of each.",
    )
    experience_sets: ExperienceSets | None = Field(
        None, description="Sets of experiences to try. If not set, `experiences.choice` decides."
    )
    objective: Literal["validation", "pseudo_targets"] = Field(
        "validation",
        description="Accuracy of a repair on held-out examples of D_collect: for the targets (`validation`), or for "
        "experiences that are left out in turn (`pseudo_targets`).",
    )
    pseudo_targets: tuple[str, ...] = Field(
        (),
        description="Experiences to leave out in turn, with `objective: pseudo_targets`; each once. If empty, all that "
        "are mined.",
    )
    searcher: Literal["random", "grid", "optuna"] = Field(
        "random",
        description="How trials are drawn: independently (`random`), every point (`grid`), or by Optuna's TPE "
        "(`optuna`).",
    )
    scheduler: Literal["none", "asha", "pbt"] = Field(
        "none",
        description="`none`: every trial runs to its end; `asha`: stops the weaker ones early; `pbt`: population-based "
        "training, which copies good trials and changes their settings.",
    )
    trials: Positive = Field(
        8, description="Number of trials; with `searcher: grid`, trials of each point; at least 1."
    )
    grace_rounds: Positive = Field(
        1, description="Rounds that every trial trains before asha may stop it; at least 1."
    )
    reduction: Annotated[float, Field(gt=1)] = Field(
        3.0, description="asha keeps one trial in this many at each of its stops; above 1."
    )
    perturbation_rounds: Positive = Field(2, description="Rounds between the exchanges of pbt; at least 1.")
    max_concurrent: Positive | None = Field(
        None,
        description="Most trials that run at once; at least 1. If not set, as many as the cluster has room for.",
    )
    max_failures: Count = Field(
        2, description="Number of times that a trial is restarted after it died; 0 or more."
    )

    @field_validator("space", mode="before")
    @classmethod
    def _by_setting(cls, space: Any) -> Any:
        if not isinstance(space, dict):
            raise ValueError(
                f"{_words(space)} is not a search space; write {{inner.rate: {{log_uniform: [1e-3, 0.3]}}}}"
            )
        for name, values in space.items():
            if not isinstance(values, dict | Distribution):
                raise ValueError(f"{name}: {_words(values)} is not a distribution; write {WAYS}")
            unknown = [] if isinstance(values, Distribution) else [k for k in values if k not in KINDS]
            if unknown and "." not in str(name):
                raise ValueError(
                    f"{name} has no dot; name each setting with its group, such as {name}.{unknown[0]}: {{…}}"
                )
        return space

    @field_validator("pseudo_targets", mode="before")
    @classmethod
    def _names(cls, names: Any) -> Any:
        return names if names in ((), []) else _corruptions("pseudo_targets", names)


def _list_of(thing: str, values: Any) -> Any:
    """Return a non-empty list as a tuple. Raises ValueError for anything else, and for a value listed twice."""
    if not isinstance(values, list | tuple):
        raise ValueError(
            f"{_words(values)} is a single {thing}, and this setting is a list: write [{_words(values)}]"
        )
    if not values:
        raise ValueError(f"the list is empty, so there is nothing to choose; give at least one {thing}")
    seen = set()
    for value in values:
        # Python's True equals 1, but they are two values. Lists and maps have no hash, so their text stands for them.
        key = (repr(value) if isinstance(value, list | tuple | dict) else value, isinstance(value, bool))
        if key in seen:
            raise ValueError(f"{_words(value)} is listed twice; list each {thing} once")
        seen.add(key)
    return tuple(values)


def _bounds(what: str, bounds: Any, kinds: tuple[type, ...]) -> Any:
    """Return two finite numbers, the smaller first. Raises ValueError for anything else."""
    words = f"{_words(bounds)} is not a range of {what}"
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        raise ValueError(f"{words}: give its two ends, [smallest, largest]")
    if any(not isinstance(b, kinds) or isinstance(b, bool) for b in bounds):
        raise ValueError(f"{words}: both ends must be {what}")
    if not all(map(math.isfinite, bounds)):
        raise ValueError(f"{words}: both ends must be finite")
    if bounds[0] >= bounds[1]:
        same = (
            "both ends are the same: set it to that value"
            if bounds[0] == bounds[1]
            else "the smaller comes first"
        )
        raise ValueError(f"{words}: {same}, or give [smallest, largest]")
    return tuple(bounds)


def _corruptions(what: str, names: Any) -> tuple[str, ...]:
    """Return the names of corruptions and environments, each once. Raises ConfigError for an unknown one."""
    resolved: Sequence[str] = [resolve_name(name) for name in _list_of("corruption", names)]
    return tuple(_list_of(f"corruption of {what}", resolved))


def _words(value: Any) -> str:
    """Return a value on one line as a person would write it in YAML; text without quotes."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_words, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

"""What a search tries and how it is judged: the section `search` of a configuration.

Here each setting is checked by itself; whether the whole can be searched is metarepair.search.check's to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from metarepair.config.section import Count, Positive, Section
from tasks.corruptions import Category, resolve
from tasks.errors import unknown_name

Bounds = tuple[float, float]

TARGETS_OWN = "target"  # among the categories: that of whatever target a trial is for
KINDS = ("choice", "uniform", "log_uniform", "integers")
WAYS = "{choice: […]}, {uniform: [a, b]}, {log_uniform: [a, b]} or {integers: [a, b]}"


class Distribution(Section):
    """The values of one setting: exactly one of these."""

    choice: tuple[Any, ...] | None = Field(None, description="Any of these values.")
    uniform: Bounds | None = Field(None, description="Real numbers from the first to the second.")
    log_uniform: Bounds | None = Field(None, description="The same, evenly in the logarithm; above 0.")
    integers: tuple[int, int] | None = Field(None, description="Whole numbers, both ends included.")

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
                f"{_words(bounds)} reaches {bounds[0]:g}, whose logarithm is not finite; begin above 0, or give "
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
    """The sets of experiences to choose from: exactly one of these."""

    top_k: tuple[Positive, ...] | None = Field(None, description="The k nearest, for each of these k.")
    categories: tuple[str, ...] | None = Field(
        None, description="All experiences of one of these categories, or `target` for the target's own."
    )
    sets: dict[str, tuple[str, ...]] | None = Field(
        None, description="Lists of corruptions by a name of their own."
    )
    free: tuple[str, ...] | Literal[True] | None = Field(
        None, description="Any subset of these (true: of all that are mined), each taken or left."
    )

    @field_validator("top_k", mode="before")
    @classmethod
    def _numbers(cls, numbers: Any) -> Any:
        return None if numbers is None else _list_of("number", numbers)

    @field_validator("categories", mode="before")
    @classmethod
    def _known(cls, names: Any) -> Any:
        known = (*get_args(Category), TARGETS_OWN)
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
                f"{_words(sets)} is no list of sets; write {{near: [snow, fog], all_noise: […]}}"
            )
        found = {str(name): _corruptions(f"the set {name!r}", names) for name, names in sets.items()}
        members = [set(names) for names in found.values()]
        alike = [name for name, own in zip(found, members, strict=True) if members.count(own) > 1]
        if alike:
            raise ValueError(f"{' and '.join(alike)} hold the same experiences; give each set once")
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
    """A search by Ray Tune: what is varied, by whom it is chosen, and what it is judged by."""

    space: dict[str, Distribution] = Field(
        default_factory=dict, description="Dotted settings and the values of each."
    )
    experience_sets: ExperienceSets | None = Field(None, description="Sets of experiences to choose from.")
    objective: Literal["validation", "pseudo_targets"] = Field(
        "validation",
        description="Accuracy of a repair on held-out examples of D_collect: of the targets', or of experiences left "
        "out in turn.",
    )
    pseudo_targets: tuple[str, ...] = Field(
        (), description="The experiences that are left out in turn; all that are mined when empty."
    )
    searcher: Literal["random", "grid", "optuna"] = Field("random", description="Who draws the trials.")
    scheduler: Literal["none", "asha", "pbt"] = Field(
        "none", description="Who ends trials early, or mutates them."
    )
    trials: Positive = Field(8, description="Trials in all; with searcher: grid, of each point.")
    grace_rounds: Positive = Field(1, description="Rounds that asha gives every trial.")
    reduction: Annotated[float, Field(gt=1)] = Field(
        3.0, description="asha keeps one in so many at each halving."
    )
    perturbation_rounds: Positive = Field(2, description="Rounds between the exchanges of pbt.")
    max_concurrent: Positive | None = Field(
        None, description="Trials at once; as many as the cluster has room for when not given."
    )
    max_failures: Count = Field(2, description="Deaths of a trial after which it is given up.")

    @field_validator("space", mode="before")
    @classmethod
    def _by_setting(cls, space: Any) -> Any:
        if not isinstance(space, dict):
            raise ValueError(
                f"{_words(space)} is no space; write {{inner.rate: {{log_uniform: [1e-3, 0.3]}}}}"
            )
        for name, values in space.items():
            if not isinstance(values, dict | Distribution):
                raise ValueError(f"{name}: {_words(values)} does not say how it is drawn; write {WAYS}")
            unknown = [] if isinstance(values, Distribution) else [k for k in values if k not in KINDS]
            if unknown and "." not in str(name):
                raise ValueError(
                    f"{name} has no values of its own; settings are written with a dot, as {name}.{unknown[0]}: {{…}}"
                )
        return space

    @field_validator("pseudo_targets", mode="before")
    @classmethod
    def _names(cls, names: Any) -> Any:
        return names if names in ((), []) else _corruptions("pseudo_targets", names)


def _list_of(thing: str, values: Any) -> Any:
    """A list with something in it, each once."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{_words(values)} is one {thing}, and this is a list: write [{_words(values)}]")
    if not values:
        raise ValueError(f"the list is empty, so there is nothing to choose; give at least one {thing}")
    kinds = [
        isinstance(value, bool) for value in values
    ]  # true equals 1, and no setting takes one for the other
    twice = [v for i, v in enumerate(values) if (v, kinds[i]) in list(zip(values, kinds, strict=True))[:i]]
    if twice:
        raise ValueError(f"{_words(twice[0])} is there twice; give each {thing} once")
    return tuple(values)


def _bounds(what: str, bounds: Any, kinds: tuple[type, ...]) -> Any:
    """Two finite numbers, the smaller first."""
    words = f"{_words(bounds)} is no range of {what}"
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
    """Published names of corruptions, each once. Raises ConfigError for an unknown one."""
    resolved: Sequence[str] = [resolve(name) for name in _list_of("corruption", names)]
    return tuple(_list_of(f"corruption of {what}", resolved))


def _words(value: Any) -> str:
    """A value as YAML would have it on one line, as far as people write it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_words, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

"""What a search tries and how it is judged: the section `search` of a configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from metarepair.section import Count, Positive, Section

Bounds = tuple[float, float]


class Distribution(Section):
    """The values of one setting: exactly one of these."""

    choice: tuple[Any, ...] | None = Field(None, description="Any of these values.")
    uniform: Bounds | None = Field(None, description="Real numbers from the first to the second.")
    log_uniform: Bounds | None = Field(None, description="The same, evenly in the logarithm; above 0.")
    integers: tuple[int, int] | None = Field(None, description="Whole numbers, both ends included.")


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

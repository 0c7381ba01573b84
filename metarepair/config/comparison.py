"""The settings of `metarepair compare`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from metarepair.config.section import Count, Section, each_once


class CompareConfig(Section):
    """`metarepair compare`: which repair methods to compare, and the budget of each repair."""

    methods: tuple[str, ...] = Field(
        (
            "joint_sgd",
            "joint",
            "merged_sgd",
            "merged",
            "sgd",
            "metarepair_sgd",
            "metarepair",
            "finetune",
            "bn_adapt",
            "tent",
            "eata",
            "sar",
            "roid",
            "apricot",
            "augmix",
            "arachne",
            "sensei",
            "deeprepair",
            "archrepair",
            "none",
        ),
        min_length=1,
        description="Repair methods to compare, in the order of the table; at least one, each once.",
    )
    seeds: tuple[Count, ...] = Field(
        (0, 1, 2),
        min_length=1,
        description="Seeds of the repairs, one repair per method and seed; whole numbers, 0 or more, each once.",
    )
    vary: Literal["repair", "everything"] = Field(
        "repair",
        description="What a seed of `compare.seeds` varies. `repair`: the repairs alone; mining and preparation happen "
        "once. `everything`: the mining split, the preparation and the repair, in a run of its own for each seed.",
    )
    budget: str | None = Field(
        None,
        description="Limit of each repair: seconds (`60s`), processor time (`60core-s`), gradient steps (`500steps`) "
        "or images learned from (`100000images`). If not set, the method's own settings decide.",
    )
    budgets: dict[str, str] = Field(
        {}, description="Budgets of single methods, by name, in the form of `budget`, which they replace."
    )

    @field_validator("methods", "seeds")
    @classmethod
    def _once(cls, values: tuple[str | int, ...]) -> tuple[str | int, ...]:
        return each_once(values)

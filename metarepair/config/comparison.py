"""The settings of `metarepair compare`."""

from __future__ import annotations

from pydantic import Field, field_validator

from metarepair.config.section import Count, Section, each_once


class CompareConfig(Section):
    """`metarepair compare`: which methods stand side by side, and what each repair may take."""

    methods: tuple[str, ...] = Field(
        (
            "none",
            "finetune",
            "bn_adapt",
            "tent",
            "apricot",
            "augmix",
            "arachne",
            "sensei",
            "deeprepair",
            "archrepair",
            "metarepair",
        ),
        min_length=1,
        description="Repair methods, in the order of the table.",
    )
    seeds: tuple[Count, ...] = Field((0, 1, 2), min_length=1, description="One repair per method and seed.")
    budget: str | None = Field(
        None,
        description="What a repair may take: 60s, 500steps or 100000images; its method's own settings when not given.",
    )
    budgets: dict[str, str] = Field({}, description="Another budget for some of the methods, by name.")

    @field_validator("methods", "seeds")
    @classmethod
    def _once(cls, values: tuple[str | int, ...]) -> tuple[str | int, ...]:
        return each_once(values)

"""Holds the settings of one repair alone, under the names that a run's YAML has for them."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from metarepair.config.load import explain
from metarepair.config.run import Config, MethodSettings, RepairSettings, TaskConfig
from metarepair.config.section import Section
from metarepair.config.training import InnerConfig
from tasks.errors import ConfigError


class RepairConfig(Section):
    """What `metarepair.repair` depends on: RepairConfig(repair={"rates": [0.01, 0.03]}, task={"shots": 5}).

    Of `repair`, the methods, seeds and exports belong to runs; a call has one method, and `seed`. Raises ConfigError
    with near names for what is no setting, or has a wrong value.
    """

    seed: Annotated[int, Field(ge=0)] = Field(0, description="Key of every draw.")
    task: TaskConfig = TaskConfig()
    inner: InnerConfig = InnerConfig()
    repair: RepairSettings = RepairSettings()
    methods: MethodSettings = Field({}, description="Settings of the methods themselves, by method.")

    @model_validator(mode="wrap")
    @classmethod
    def _in_words(cls, values: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return check(values)
        except ValidationError as error:
            raise ConfigError(explain(error, "RepairConfig", root=cls)) from error


AnyConfig = Config | RepairConfig

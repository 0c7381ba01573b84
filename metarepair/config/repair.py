"""The settings of a single repair, under the same names as in a run's YAML file."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from metarepair.config.limits import LimitsConfig
from metarepair.config.load import explain
from metarepair.config.run import Config, MethodSettings, RepairSettings, TaskConfig
from metarepair.config.section import Count, Section
from metarepair.config.training import InnerConfig
from tasks.errors import ConfigError


class RepairConfig(Section):
    """Settings of one call of `metarepair.repair`; each group has the names and defaults of a run's YAML.

    A group is given as a mapping of its settings. A call has one method and one seed, so it does not use
    `repair.methods`, `repair.seeds` and `repair.export`, which belong to runs.

    Attributes:
        seed: Key of every random draw, a whole number from 0.
        task: How a support is drawn (paper Sec. 4.2): `shots` examples per class, `clean_support` clean images.
        inner: The inner loop (paper Algorithm 1, line 18): steps, rate, the parameters that it adapts, batch norm.
        repair: The walk over tasks (paper Algorithm 1, lines 13-23): episodes, tasks, rates, and the share of the
            failures that is held out for validation.
        limits: What the repair may cost, and what it must gain, to be taken in place of the given weights.
        methods: Settings of the methods themselves, by the method's name.

    Raises:
        ConfigError: A key is not a setting (the message names the nearest ones), or a value is of the wrong type or
            outside its range.

    Example:
        >>> from metarepair import RepairConfig
        >>> config = RepairConfig(repair={"rates": [0.01, 0.03]}, task={"shots": 5})
        >>> config.repair.rates, config.task.shots
        ((0.01, 0.03), 5)
    """

    seed: Count = Field(0, description="Seed of every random draw; 0 or more.")
    task: TaskConfig = Field(TaskConfig(), description="The tasks of a repair.")
    inner: InnerConfig = Field(InnerConfig(), description="The inner loop.")
    repair: RepairSettings = Field(RepairSettings(), description="The repair itself.")
    limits: LimitsConfig = Field(LimitsConfig(), description="Limits within which the repair is taken.")
    methods: MethodSettings = Field({}, description="Settings of single methods, by method name.")

    @model_validator(mode="after")
    def _takes_steps(self) -> RepairConfig:
        if self.inner.steps == 0:
            raise ValueError(
                "inner.steps is 0, and a repair that takes no step changes nothing; give 1 or more"
            )
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _in_words(cls, values: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return check(values)
        except ValidationError as error:
            raise ConfigError(explain(error, "RepairConfig", root=cls)) from error


AnyConfig = Config | RepairConfig

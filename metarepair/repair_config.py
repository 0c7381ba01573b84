"""The settings of one repair alone, under the names that a run's YAML has for them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from metarepair.config import Config, MethodSettings, RepairSettings, TaskConfig
from metarepair.section import Section
from metarepair.train_config import InnerConfig


class RepairConfig(Section):
    """What `metarepair.repair` depends on: RepairConfig(repair={"rates": [0.01, 0.03]}, task={"shots": 5}).

    Of `repair`, the methods, seeds and exports belong to runs; a call has one method, and `seed`.
    """

    seed: Annotated[int, Field(ge=0)] = Field(0, description="Key of every draw.")
    task: TaskConfig = TaskConfig()
    inner: InnerConfig = InnerConfig()
    repair: RepairSettings = RepairSettings()
    methods: MethodSettings = Field({}, description="Settings of the methods themselves, by method.")


AnyConfig = Config | RepairConfig

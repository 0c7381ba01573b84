"""The interface of a repair method, and what surrounds one repair.

A method is a class that subclasses Method and registers itself. A method of another package is found by an entry
point of the group `metarepair.methods` that names its class.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from torch import nn

from metarepair.adaptation.meta_test import Start, Step
from metarepair.adaptation.repair_data import RepairData, Uses
from metarepair.config.repair import AnyConfig
from metarepair.config.section import Section
from metarepair.methods.budget import Budget
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel
from metarepair.models.wrappers import copied
from tasks.errors import ConfigError
from tasks.storage.paths import Place

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")
Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
Changes = Literal["weights", "statistics", "architecture"]


class NoSettings(Section):
    """The settings of a method that has none of its own."""


def map_here(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Does `work` on one item after the other in this process; the results come in the order of the items."""
    return map(work, items)


def no_experiences() -> Start:
    """Stands in for `load_meta` where a method does not declare that it uses experiences. Raises ConfigError."""
    raise ConfigError("this method was given no experiences: name them in what it `uses`.")


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """What surrounds one repair.

    Attributes:
        config: The settings that all methods share.
        seed: The seed of the repair.
        load_meta: Loads θ_meta.
        settings: The method's own settings.
        budget: The limit of the repair, and what it has spent.
        map: Runs independent pieces, here or on Ray. What it is given must pickle.
        device: Where those pieces run: auto, cpu or cuda, as seen by the process that runs them.
        folder: The repair's folder for checkpoints; with None, no checkpoints are kept.
        prepared: The folder that `prepare` wrote to.
        say: Logs a line of progress; a run puts the name of the target before it.
    """

    config: AnyConfig
    seed: int
    load_meta: Callable[[], Start] = no_experiences
    settings: Section = field(default_factory=NoSettings)
    budget: Budget = field(default_factory=Budget)
    map: Map = map_here
    device: str = "cpu"
    folder: Place | None = None
    prepared: Place | None = None
    say: Callable[[str], None] = logger.info


class Method(ABC):
    """A repair method. Of the target it sees RepairData, cut to the data that it declares in `uses`, and nothing else.

    Attributes:
        name: The name in settings and on the command line.
        words: The name in tables.
        uses: `failures` is D_collect with labels, `unlabelled` its images alone (labels are -1), `clean` the clean
            training split, `experiences` θ_meta.
        changes: What it changes of the DNN.
        cost: What a repair costs, in words.
        Settings: The class of its own settings.
        prepares: Whether it does work in `prepare`.
        prepared_by: The settings that `prepare` depends on; None for all of them.
        walks: Whether it repairs by the walk over tasks, and so depends on the settings task, inner and repair.
    """

    name: ClassVar[str]
    words: ClassVar[str]
    uses: ClassVar[tuple[Uses, ...]]
    changes: ClassVar[tuple[Changes, ...]]
    cost: ClassVar[str]
    Settings: ClassVar[type[Section]] = NoSettings
    prepares: ClassVar[bool] = False
    prepared_by: ClassVar[tuple[str, ...] | None] = None
    walks: ClassVar[bool] = False

    def uses_with(self, config: AnyConfig) -> tuple[Uses, ...]:
        """`uses`, and clean images if the settings have a walk learn from them or be chosen by them."""
        clean = self.walks and (config.task.clean_support > 0 or config.repair.clean_weight > 0)
        return (*self.uses, "clean") if clean else self.uses

    def check(self, module: nn.Module, settings: Any) -> None:  # noqa: B027  most methods take every DNN
        """Raises ConfigError for a DNN or settings that the method cannot work with. Called before any work begins."""

    def prepare(  # noqa: B027  most methods prepare nothing
        self, deployed: DeployedModel, data: RepairData, context: MethodContext
    ) -> None:
        """Does the work that needs no target, and writes it to `context.prepared`. Resumes what is there already.

        `data` holds the clean training split alone, and no failures.
        """

    @abstractmethod
    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        """Returns the repaired DNN. `deployed.module` is a copy, which the method may change."""

    def steps(
        self, deployed: DeployedModel, data: RepairData, context: MethodContext, *, rate: float
    ) -> Iterator[Step]:
        """Walks the tasks of a repair again, for the paper's mean acc_s. Only methods with `walks` have it."""
        raise NotImplementedError(f"{self.name} has no tasks")

    def rebuild(self, module: nn.Module, architecture: Mapping[str, Any]) -> nn.Module:
        """A copy of the deployed `module` in the architecture that a repair saved. The caller loads its weights."""
        return copied(module)

"""The interface of a repair method: deployed DNN and what it may see in, repaired DNN out.

A method is one file that subclasses Method and registers. One of another package is found by an entry point of the
group `metarepair.methods` that names such a class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from torch import nn

from metarepair.adaptation.meta_test import Start, Step
from metarepair.adaptation.repair_data import RepairData
from metarepair.config.repair import AnyConfig
from metarepair.config.section import Section
from metarepair.methods.budget import Budget
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel
from metarepair.models.wrappers import copied
from tasks.errors import ConfigError
from tasks.storage.paths import Place

Item = TypeVar("Item")
Result = TypeVar("Result")
Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
Uses = Literal["failures", "unlabelled", "clean", "experiences"]
Changes = Literal["weights", "statistics", "architecture"]


class NoSettings(Section):
    """Of a method that has none of its own."""


def map_here(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The results in the order of the items, one after the other in this process."""
    return map(work, items)


def no_experiences() -> Start:
    """What a method gets for θ_meta that does not say that it uses experiences."""
    raise ConfigError("this method was given no experiences: name them in what it `uses`.")


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """What surrounds one repair.

    config: the settings that all methods share; settings: the method's own. seed: of the repair. load_meta: θ_meta.
    budget: what the repair may take and has taken. map: runs independent pieces, here or on Ray; what it is given must
    pickle, and runs on the `device` (auto, cpu or cuda) of where it is. folder: the repair's own, for checkpoints (none
    are kept without). prepared: what `prepare` left. say: lines of progress.
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
    say: Callable[[str], None] = lambda _: None


class Method(ABC):
    """A repair method. It sees RepairData, cut to what it says that it uses, and nothing else of the target.

    words: what tables call it. uses: `failures` are D_collect with labels, `unlabelled` its images alone (labels are
    -1), `clean` the clean training split, `experiences` θ_meta. changes: what of the DNN. cost: in words. prepared_by:
    the settings that `prepare` depends on, all when not given. walks: whether it repairs by the meta-test's tasks, and
    so goes by the settings task, inner and repair.
    """

    name: ClassVar[str]
    words: ClassVar[str]
    uses: ClassVar[tuple[Uses, ...]]
    changes: ClassVar[tuple[Changes, ...]]
    cost: ClassVar[str]
    Settings: ClassVar[type[Section]] = NoSettings
    prepares: ClassVar[bool] = False  # whether `prepare` does anything
    prepared_by: ClassVar[tuple[str, ...] | None] = None
    walks: ClassVar[bool] = False

    def uses_with(self, config: AnyConfig) -> tuple[Uses, ...]:
        """What it uses under these settings: `uses`, and clean images where a walk has them in its supports."""
        clean = self.walks and (config.task.clean_support > 0 or config.repair.clean_weight > 0)
        return (*self.uses, "clean") if clean else self.uses

    def check(self, module: nn.Module, settings: Any) -> None:  # noqa: B027  most methods take every DNN
        """Raises ConfigError for a DNN, or settings, that the method cannot work with: before anything has begun."""

    def prepare(  # noqa: B027  most methods prepare nothing
        self, deployed: DeployedModel, data: RepairData, context: MethodContext
    ) -> None:
        """Makes in `context.prepared` what no target is needed for; goes on with what is there already.

        `data` has the clean training split alone: its failures are none.
        """

    @abstractmethod
    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        """The repaired DNN; the deployed one stays as it is."""

    def steps(
        self, deployed: DeployedModel, data: RepairData, context: MethodContext, *, rate: float
    ) -> Iterator[Step]:
        """The tasks of a repair once more, for the paper's mean acc_s; for methods that walk alone."""
        raise NotImplementedError(f"{self.name} has no tasks")

    def rebuild(self, module: nn.Module, architecture: Mapping[str, Any]) -> nn.Module:
        """A copy of the deployed `module` with the architecture that a repair saved; its weights are loaded after."""
        return copied(module)

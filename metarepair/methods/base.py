"""The interface of a repair method, and the context in which it repairs.

A method is a subclass of Method that registers itself. Another package offers a method through an entry point of the
group `metarepair.methods` that names its class.
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
    """Apply `work` to one item after the other in this process; the results come in the order of the items."""
    return map(work, items)


def no_experiences() -> Start:
    """Raise ConfigError: the `load_meta` of a method that does not declare `experiences` in `uses`."""
    raise ConfigError("this method was given no experiences: add 'experiences' to its `uses`.")


def no_joint() -> Start:
    """Raise ConfigError: the `load_joint` of a method that does not declare `joint` in `uses`, or outside of a run."""
    raise ConfigError(
        "no jointly trained weights were given: a run makes them (metarepair run, compare), for methods with 'joint' "
        "in their `uses`. Name such a method in a run, or use another one here, such as finetune or sgd."
    )


def no_merged() -> Start:
    """Raise ConfigError: the `load_merged` of a method without `merged` in its `uses`, or outside of a run."""
    raise ConfigError(
        "no merged weights were given: a run makes them (metarepair run, compare), for methods with 'merged' in their "
        "`uses`. Name such a method in a run, or use another one here, such as finetune or sgd."
    )


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """The settings, budget, folders and helpers of one repair (or of one `prepare`).

    Attributes:
        config: The settings that all methods share.
        seed: The seed of the repair, from 0. Key every random draw by it.
        load_meta: Loads θ_meta, the result of meta-training for the target (paper Algorithm 1). Raises ConfigError
            for a method that does not declare `experiences` in `uses`.
        load_joint: Loads the weights of joint training on clean images and experiences. Raises ConfigError for a method
            that does not declare `joint` in `uses`.
        load_merged: Loads the average of the repairs of past environments, weighted by the confidence in each (paper
            Eq. 8). Raises ConfigError for a method that does not declare `merged` in `uses`.
        settings: The method's own settings, an instance of its `Settings`.
        budget: The limit of the repair, and what it has spent.
        map: Applies a function to independent items, in this process or on Ray; the results come in the order of the
            items. Function and items must pickle.
        device: Where `map` runs the function: auto, cpu or cuda, as seen by the process that runs it.
        folder: The repair's folder for checkpoints; with None, no checkpoints are kept.
        prepared: The folder that `prepare` writes to and `repair` reads from; None for a method that prepares nothing.
        say: Logs a line of progress; a run puts the name of the target before it.
    """

    config: AnyConfig
    seed: int
    load_meta: Callable[[], Start] = no_experiences
    load_joint: Callable[[], Start] = no_joint
    load_merged: Callable[[], Start] = no_merged
    settings: Section = field(default_factory=NoSettings)
    budget: Budget = field(default_factory=Budget)
    map: Map = map_here
    device: str = "cpu"
    folder: Place | None = None
    prepared: Place | None = None
    say: Callable[[str], None] = logger.info


class Method(ABC):
    """Base class of the repair methods.

    Of the target, a method sees a RepairData, cut to the data that it declares in `uses`, and nothing else. A subclass
    declares name, words, uses, changes and cost, and defines `repair`. The registry creates it without arguments.

    Attributes:
        name: The name in settings and on the command line.
        words: The name in tables.
        uses: The data that it may see: `failures` is D_collect with labels, `unlabelled` only the images of D_collect
            (labels are -1), `clean` the clean training split, `experiences` θ_meta, `joint` the jointly trained
            weights, `merged` the average of the repairs of past environments.
        changes: What it changes in the DNN: `weights`, `statistics` (of batch norms), `architecture`.
        cost: The cost of a repair, as a phrase for tables.
        Settings: The class of its own settings.
        prepares: Whether it does work in `prepare`.
        prepared_by: Names of its own settings that `prepare` depends on; None if it depends on all of them.
        walks: Whether it walks over tasks (paper Algorithm 1, lines 13-23), and so depends on the settings `task`,
            `inner` and `repair`.

    Example:
        >>> from metarepair.methods import Method, repaired_from
        >>> class Unchanged(Method):
        ...     name, words = "unchanged", "no change"
        ...     uses, changes, cost = (), (), "nothing"
        ...     def repair(self, deployed, data, context):
        ...         return repaired_from(self.name, deployed.module, context.budget)
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
        """Return `uses`, with `clean` added if a walk uses clean images (`task.clean_support`, `repair.clean_weight`).

        Args:
            config: The settings that all methods share.

        Returns:
            What the method may see with these settings.
        """
        clean = self.walks and (config.task.clean_support > 0 or config.repair.clean_weight > 0)
        return (*self.uses, "clean") if clean else self.uses

    def check(self, module: nn.Module, settings: Any) -> None:  # noqa: B027  most methods take every DNN
        """Refuse a DNN or settings that the method cannot work with. Called before any work starts.

        Args:
            module: The deployed DNN, which must not be changed.
            settings: The method's own settings.

        Raises:
            ConfigError: The method cannot repair this DNN, or its settings contradict each other.
        """

    def prepare(  # noqa: B027  most methods prepare nothing
        self, deployed: DeployedModel, data: RepairData, context: MethodContext
    ) -> None:
        """Do the work that needs no target, and write its results to `context.prepared`.

        It resumes from what is in that folder already. Called only if `prepares` is True.

        Args:
            deployed: The deployed DNN.
            data: The clean training split; its `learn` and `validation` are empty.
            context: Settings, budget, `map` and the folder `prepared`.

        Raises:
            ConfigError: The data or settings do not allow the preparation.
        """

    @abstractmethod
    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        """Repair the DNN.

        Args:
            deployed: The deployed DNN with its preprocessing. `deployed.module` is a copy that the method may change,
                except for parameters with requires_grad=False.
            data: What the method declares in `uses`; `data.learn` is to learn from, `data.validation` only selects.
                Images are uint8 [N, H, W, C], or in a call of `metarepair.repair` float32 that is already normalised
                (`deployed.normalise` takes both). Labels are int64 [N].
            context: Settings, budget and folders. Check `context.budget.over` before each piece of work.

        Returns:
            The repaired DNN; `metarepair.methods.repaired_from` makes it from a module changed in place.

        Raises:
            UserError: The data or the DNN cannot be used, or the repair diverged.
        """

    def steps(
        self, deployed: DeployedModel, data: RepairData, context: MethodContext, *, rate: float
    ) -> Iterator[Step]:
        """Walk over the tasks of a repair again, for the paper's mean acc_s (Algorithm 1, line 23).

        Args:
            deployed: The deployed DNN.
            data: The data of the repair.
            context: The context of the repair.
            rate: The inner rate that the repair chose.

        Returns:
            The adapted DNN after each task.

        Raises:
            NotImplementedError: The method does not walk over tasks.
        """
        raise NotImplementedError(f"{self.name} has no tasks")

    def rebuild(self, module: nn.Module, architecture: Mapping[str, Any]) -> nn.Module:
        """Return a copy of the deployed DNN in the architecture that a repair saved; the caller loads its weights.

        Args:
            module: The deployed DNN, which must not be changed.
            architecture: `RepairedModel.architecture` of the repair, read back from JSON.

        Returns:
            A module with the parameters and buffers of the repaired DNN, of any values.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: The architecture is damaged.
        """
        return copied(module)

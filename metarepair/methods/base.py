"""The interface of a repair method: deployed DNN and D_collect in, repaired state out; and the registry."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import nn

from metarepair.meta_test import Choice, RepairData, Start, Step, choose, walk
from metarepair.models.build import DeployedModel
from metarepair.repair_config import AnyConfig
from metarepair.vectors import State, not_finite
from tasks.errors import ConfigError, unknown_name


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """Settings, the seed of the repair, and what was prepared before: θ_meta for those that ask for it."""

    config: AnyConfig
    seed: int
    load_meta: Callable[[], Start]


@dataclass(frozen=True, kw_only=True)
class RepairedModel:
    """A repaired DNN as parameters and buffers, and what the repair cost.

    `rate` and `episode` (from 0) are those that validation chose; `steps` walks the same tasks again, for the paper's
    mean acc_s. All three are None for a method without tasks.
    """

    method: str
    parameters: State
    buffers: State
    validation: float
    images_seen: int
    gradient_steps: int
    notes: tuple[str, ...] = ()
    rate: float | None = None
    episode: int | None = None
    steps: Callable[[], Iterator[Step]] | None = None

    def state(self) -> State:
        """All parameters and buffers."""
        return {**self.parameters, **self.buffers}

    def first_not_finite(self) -> str | None:
        """Name of the first tensor with a NaN or an infinity, None where there is none."""
        return next(iter(not_finite(self.state())), None)

    @torch.no_grad()
    def fill(self, module: nn.Module) -> nn.Module:
        """A copy of `module` that is repaired, in evaluation mode; its state dict has the names that files have.

        These may be fewer than parameters and buffers, or more: some buffers are not saved, a shared tensor is twice.
        """
        found, state = copy.deepcopy(module).eval(), self.state()
        for name, tensor in (*found.named_parameters(), *found.named_buffers()):
            tensor.copy_(state[name])
        return found


class Method(Protocol):
    """A repair method. It sees RepairData and nothing else of the target."""

    name: str

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel: ...


METHODS: dict[str, Method] = {}
MethodClass = TypeVar("MethodClass", bound=Method)


def register(cls: type[MethodClass]) -> type[MethodClass]:
    """Adds a method class to the registry by its name."""
    METHODS[cls.name] = cls()
    return cls


def get_method(name: str) -> Method:
    """The method `name`. Raises ConfigError with near names for an unknown one."""
    if name not in METHODS:
        raise ConfigError(unknown_name("repair method", name, METHODS))
    return METHODS[name]


def repair_from(
    method: str,
    start: Start,
    deployed: DeployedModel,
    data: RepairData,
    context: MethodContext,
) -> RepairedModel:
    """The meta-test from a start: what metarepair and finetune share, so that they differ in θ alone."""
    config = context.config
    choice: Choice = choose(deployed, start, data, config, seed=context.seed)

    def steps() -> Iterator[Step]:
        return walk(
            deployed,
            start,
            data,
            config,
            seed=context.seed,
            rate=choice.rate,
            episodes=config.repair.episodes,
        )

    return RepairedModel(
        method=method,
        parameters=choice.step.parameters,
        buffers=choice.step.buffers,
        validation=choice.validation,
        images_seen=choice.images_seen,
        gradient_steps=choice.gradient_steps,
        rate=choice.rate,
        episode=choice.episode,
        notes=(f"inner rate {choice.rate} and episode {choice.episode + 1} chosen on validation",),
        steps=steps,
    )

"""Holds the result of a repair: parameters and buffers, of the deployed architecture or of a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from metarepair.adaptation.meta_test import Step
from metarepair.engine.vectors import State, copied_buffers, copied_parameters, not_finite, put_state
from metarepair.methods.budget import Budget
from metarepair.models.build import DeployedModel
from metarepair.models.wrappers import copied


@dataclass(frozen=True, kw_only=True)
class RepairedModel:
    """A repaired DNN, and what the repair cost.

    Validation chose `rate` and `episode` (from 0), and `steps` walks the same tasks again, for the paper's mean acc_s;
    all three are None for a method without tasks. `module` is given if the architecture changed: then `architecture`
    describes it in plain JSON, from which the method's `rebuild` makes it again.
    """

    method: str
    parameters: State
    buffers: State
    images_seen: int
    gradient_steps: int
    notes: tuple[str, ...] = ()
    rate: float | None = None
    episode: int | None = None
    steps: Callable[[], Iterator[Step]] | None = None
    module: nn.Module | None = None
    architecture: Mapping[str, Any] | None = None

    def state(self) -> State:
        """All parameters and buffers."""
        return {**self.parameters, **self.buffers}

    def first_not_finite(self) -> str | None:
        """Name of the first tensor with a NaN or an infinity; None if all are finite."""
        return next(iter(not_finite(self.state())), None)

    def architecture_of(self, deployed: DeployedModel) -> DeployedModel:
        """`deployed` with the architecture that `parameters` and `buffers` belong to."""
        return deployed if self.module is None else replace(deployed, module=self.module)

    def fill(self, module: nn.Module) -> nn.Module:
        """A repaired copy of `module`, or of the new architecture, in evaluation mode.

        Save its state dict, not `state()`: a state dict leaves out buffers that are not persistent and lists a shared
        tensor under each of its names.
        """
        found = copied(self.module or module).eval()
        put_state(found, self.state())
        return found


def repaired_from(
    method: str,
    module: nn.Module,
    budget: Budget,
    *,
    notes: tuple[str, ...] = (),
) -> RepairedModel:
    """The result of a method that changed `module` in place; `budget` has counted what that cost."""
    return RepairedModel(
        method=method,
        parameters=copied_parameters(module),
        buffers=copied_buffers(module),
        images_seen=budget.images_seen,
        gradient_steps=budget.gradient_steps,
        notes=notes,
    )

"""The result of a repair: parameters and buffers of the deployed architecture or of a new one."""

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
    """What a method returns: the repaired DNN, and what the repair cost.

    Attributes:
        method: The name of the method.
        parameters: All parameters of the repaired DNN, by name.
        buffers: All buffers of the repaired DNN, by name.
        images_seen: Images that went through the DNN to learn from; an image counts once for each pass.
        gradient_steps: Steps of an optimizer.
        notes: Sentences for the user and the report.
        rate: The inner rate that validation chose; None for a method that does not walk over tasks.
        episode: The episode that validation chose, from 0; None for a method that does not walk over tasks.
        steps: Walks over the same tasks again, for the paper's mean acc_s (Algorithm 1, line 23); None for a method
            that does not walk over tasks.
        module: A module of the new architecture, if the repair changed the architecture; else None.
        architecture: The new architecture as plain JSON values, from which the method's `rebuild` makes it again; None
            if it did not change.
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
        """Return all parameters and buffers, by name."""
        return {**self.parameters, **self.buffers}

    def first_not_finite(self) -> str | None:
        """Return the name of the first tensor with a NaN or an infinity; None if all are finite."""
        return next(iter(not_finite(self.state())), None)

    def architecture_of(self, deployed: DeployedModel) -> DeployedModel:
        """Return `deployed` with the architecture that `parameters` and `buffers` belong to."""
        return deployed if self.module is None else replace(deployed, module=self.module)

    def fill(self, module: nn.Module) -> nn.Module:
        """Return a repaired DNN in evaluation mode: a copy of `module`, or of the new architecture if there is one.

        To save the DNN, save the state dict of this copy, not `state()`: a state dict leaves out buffers that are not
        persistent, and lists a shared tensor under each of its names.

        Args:
            module: The deployed DNN, which is not changed.

        Returns:
            The repaired DNN.
        """
        filled = copied(self.module or module).eval()
        put_state(filled, self.state())
        return filled


def repaired_from(
    method: str,
    module: nn.Module,
    budget: Budget,
    *,
    notes: tuple[str, ...] = (),
) -> RepairedModel:
    """Make the result of a method that changed a module in place, in the deployed architecture.

    Args:
        method: The name of the method.
        module: The repaired DNN, usually `deployed.module`. Its parameters and buffers are copied.
        budget: The budget of the repair, which has counted what the repair cost.
        notes: Sentences for the user and the report.

    Returns:
        What `Method.repair` returns.
    """
    return RepairedModel(
        method=method,
        parameters=copied_parameters(module),
        buffers=copied_buffers(module),
        images_seen=budget.images_seen,
        gradient_steps=budget.gradient_steps,
        notes=notes,
    )

"""Chooses which adapted parameters a repair keeps: of all rates and episodes, the end with the best validation score.

The paper does not say which model it keeps. Validation never uses D_fail.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from metarepair.adaptation.accuracy import accuracy_on
from metarepair.adaptation.meta_test import Start, Step, start_of, walk
from metarepair.adaptation.repair_data import RepairData
from metarepair.config.repair import AnyConfig
from metarepair.engine.vectors import State
from metarepair.models.build import DeployedModel
from tasks.errors import ConfigError


class Spending(Protocol):
    """Counts the images and steps of a repair; `over` once its budget is used up (metarepair.methods.budget)."""

    @property
    def over(self) -> bool: ...
    def spend(self, *, images: int = 0, steps: int = 0) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The kept parameters, `step`, with the rate, episode and interpolation weight that led to them.

    score: their score on validation. whole: False if the budget ended the search before all rates and episodes.
    """

    rate: float
    episode: int
    weight: float
    score: float
    step: Step
    whole: bool = True


def choose(
    deployed: DeployedModel, start: Start, data: RepairData, config: AnyConfig, *, seed: int, budget: Spending
) -> Choice:
    """Walks M episodes at each of `repair.rates` and keeps the end of the episode that scores best.

    When the budget is used up, the search stops after the current task, and the unfinished episode is scored as it is.
    """
    best: Choice | None = None
    before = start_of(deployed)
    for rate in config.repair.rates:
        steps = walk(deployed, start, data, config, seed=seed, rate=rate, episodes=config.repair.episodes)
        for step in steps:
            budget.spend(images=step.images_seen, steps=config.inner.steps)
            if step.slot < config.repair.tasks - 1 and not budget.over:
                continue
            for weight in config.repair.interpolate:
                mixed = interpolated(before, step, weight)
                scored = score(deployed, mixed, data, config)
                if best is None or scored > best.score:
                    best = Choice(rate=rate, episode=step.episode, weight=weight, score=scored, step=mixed)
            if budget.over:
                assert best is not None
                return replace(best, whole=False)
    assert best is not None  # config has at least one rate, episode and task
    return best


def interpolated(deployed: Start, step: Step, weight: float) -> Step:
    """`step` mixed with the deployed weights; `weight` is the share of the repaired parameters and statistics.

    Source: Wortsman et al. 2022, WiSE-FT.
    """
    if weight == 1.0:
        return step

    def mix(before: State, after: State) -> State:
        return {k: before[k].lerp(v, weight) if v.is_floating_point() else v for k, v in after.items()}

    return replace(
        step,
        parameters=mix(deployed.parameters, step.parameters),
        buffers=mix(deployed.buffers, step.buffers),
    )


def score(deployed: DeployedModel, step: Step, data: RepairData, config: AnyConfig) -> float:
    """Accuracy on validation; `repair.clean_weight` is the weight of accuracy on held-out clean images in it."""
    weight = config.repair.clean_weight
    accuracy = accuracy_on(deployed, step.parameters, step.buffers, data.validation)
    if weight == 0:
        return accuracy
    if data.clean is None:
        raise ConfigError(
            f"repair.clean_weight={weight} needs clean training images, but none are given. Set it to 0."
        )
    return (1 - weight) * accuracy + weight * accuracy_on(
        deployed, step.parameters, step.buffers, data.clean.held_out
    )

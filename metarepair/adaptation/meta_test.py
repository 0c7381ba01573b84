"""Adapts θ to a target's collected failures, task by task.

Every episode starts from θ. The updates of its tasks accumulate, or each task starts from θ again (`repair.update:
separate`, the paper's "Separate Update" ablation).
Source: paper Algorithm 1, lines 13-21. The evaluator computes lines 20 and 23 (metarepair.evaluation.evaluate).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from metarepair.adaptation.repair_data import RepairData, draw_support
from metarepair.config.repair import AnyConfig
from metarepair.engine.inner import FunctionalNet, adapt
from metarepair.engine.types import InnerRule
from metarepair.engine.vectors import State, copied_buffers, copied_parameters
from metarepair.models.build import DeployedModel


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a repair starts: θ, its buffers, and the factors of learned rates (empty without learned rates)."""

    parameters: State
    buffers: State
    factors: State = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Step:
    """θ̂ after one task of an episode, and the number of images that the DNN processed for that task."""

    episode: int
    slot: int
    parameters: State
    buffers: State
    images_seen: int


def start_of(deployed: DeployedModel) -> Start:
    """A start from the deployed weights."""
    return Start(parameters=copied_parameters(deployed.module), buffers=copied_buffers(deployed.module))


def inner_rule(config: AnyConfig, rate: float | None = None) -> InnerRule:
    """The inner rule of the settings, with `rate` in place of `inner.rate` if it is given."""
    settings = config.inner.model_dump()
    return InnerRule(**(settings if rate is None else settings | {"rate": rate}))


def repair_rule(config: AnyConfig, rate: float) -> InnerRule:
    """The inner rule of a repair.

    `batch` statistics exist in meta-training only. A repair stores the statistics it adapts to, so `adapt` replaces it.
    """
    rule = inner_rule(config, rate)
    if rule.batch_norm != "batch":
        return rule
    return InnerRule(**(vars(rule) | {"batch_norm": "adapt"}))


def walk(
    deployed: DeployedModel,
    start: Start,
    data: RepairData,
    config: AnyConfig,
    *,
    seed: int,
    rate: float,
    episodes: int,
) -> Iterator[Step]:
    """Yield θ̂ after each of the S tasks of every episode (lines 13-21)."""
    net = FunctionalNet(deployed.module, repair_rule(config, rate))
    for episode in range(episodes):  # line 13
        parameters, buffers = start.parameters, start.buffers  # line 16
        for slot in range(config.repair.tasks):  # line 17
            if config.repair.update == "separate":
                parameters, buffers = start.parameters, start.buffers
            support = draw_support(
                deployed, data, config, seed=seed, episode=episode, slot=slot
            )  # lines 14-15
            parameters, buffers = adapt(net, parameters, buffers, support, start.factors)  # lines 18-19
            yield Step(
                episode=episode,
                slot=slot,
                parameters=parameters,
                buffers=buffers,
                images_seen=len(support) * net.rule.steps,
            )

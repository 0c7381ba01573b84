"""A start θ and D_collect in, the meta-test's repair out: what metarepair and finetune share.

Source: paper Algorithm 1, lines 13-23.
"""

from __future__ import annotations

from collections.abc import Iterator

from metarepair.adaptation.choice import Choice, choose
from metarepair.adaptation.meta_test import Start, Step, walk
from metarepair.adaptation.repair_data import RepairData
from metarepair.methods.base import MethodContext
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel


def repair_from(
    method: str, start: Start, deployed: DeployedModel, data: RepairData, context: MethodContext
) -> RepairedModel:
    """The episode's end that is best on validation, of all rates."""
    config = context.config
    choice = choose(deployed, start, data, config, seed=context.seed, budget=context.budget)
    cut = () if choice.whole else ("the budget was over before all rates and episodes were tried",)
    return RepairedModel(
        method=method,
        parameters=choice.step.parameters,
        buffers=choice.step.buffers,
        images_seen=context.budget.images_seen,
        gradient_steps=context.budget.gradient_steps,
        rate=choice.rate,
        episode=choice.episode,
        notes=(_chosen(choice), *cut),
        steps=lambda: walk_again(start, deployed, data, context, rate=choice.rate),
    )


def _chosen(choice: Choice) -> str:
    mixed = "" if choice.weight == 1.0 else f", {choice.weight:g} of it in the mean with the deployed DNN"
    return f"inner rate {choice.rate} and episode {choice.episode + 1} chosen on validation{mixed}"


def walk_again(
    start: Start, deployed: DeployedModel, data: RepairData, context: MethodContext, *, rate: float
) -> Iterator[Step]:
    """All M × S tasks at the rate that was chosen, for the paper's mean acc_s."""
    config = context.config
    return walk(deployed, start, data, config, seed=context.seed, rate=rate, episodes=config.repair.episodes)

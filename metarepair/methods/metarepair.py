"""MetaRepair: adapts θ_meta to the collected failures by the walk over tasks, and keeps the best of it.

Source: paper Algorithm 1, lines 13-23.
"""

from __future__ import annotations

from collections.abc import Iterator

from metarepair.adaptation.choice import Choice, choose
from metarepair.adaptation.meta_test import Start, Step, walk
from metarepair.adaptation.repair_data import RepairData
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel


@register
class MetaRepair(Method):
    """Starts from what meta-training learned on the experiences of other environments."""

    name = "metarepair"
    words = "MetaRepair"
    uses = ("failures", "experiences")
    changes = ("weights", "statistics")
    cost = "as finetune; before it, once for a target, train.episodes of meta-training"
    walks = True

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        return repair_from(self.name, context.load_meta(), deployed, data, context)

    def steps(
        self, deployed: DeployedModel, data: RepairData, context: MethodContext, *, rate: float
    ) -> Iterator[Step]:
        return walk_again(context.load_meta(), deployed, data, context, rate=rate)


def repair_from(
    method: str, start: Start, deployed: DeployedModel, data: RepairData, context: MethodContext
) -> RepairedModel:
    """Repairs from `start` and keeps the episode's end that scores best on validation, over all rates.

    `finetune` is the same from the deployed weights.
    """
    choice = choose(deployed, start, data, context.config, seed=context.seed, budget=context.budget)
    cut = () if choice.whole else ("the budget was over before all rates and episodes were tried",)
    return RepairedModel(
        method=method,
        parameters=choice.step.parameters,
        buffers=choice.step.buffers,
        images_seen=context.budget.images_seen,
        gradient_steps=context.budget.gradient_steps,
        rate=choice.rate,
        episode=choice.episode,
        notes=(_note(choice), *cut),
        steps=lambda: walk_again(start, deployed, data, context, rate=choice.rate),
    )


def _note(choice: Choice) -> str:
    mixed = "" if choice.weight == 1.0 else f", {choice.weight:g} of it in the mean with the deployed DNN"
    return f"inner rate {choice.rate} and episode {choice.episode + 1} chosen on validation{mixed}"


def walk_again(
    start: Start, deployed: DeployedModel, data: RepairData, context: MethodContext, *, rate: float
) -> Iterator[Step]:
    """Walks all M × S tasks again at the chosen rate: the paper's mean acc_s (line 23) needs θ̂ after each of them."""
    config = context.config
    return walk(deployed, start, data, config, seed=context.seed, rate=rate, episodes=config.repair.episodes)

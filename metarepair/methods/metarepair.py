"""MetaRepair: adapt the meta-trained weights to the collected failures, and keep the best result.

Meta-training has practised repair on the failures of other corruptions (experiences), so that its result, θ_meta,
adapts to new failures in a few gradient steps. The repair takes such steps on small sets of the collected failures
(tasks), one task after the other, in several episodes that each start from θ_meta. It does so at every rate in
`repair.rates`, and keeps the end of the episode that is best on held-out failures.
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

TRAINED = "before it, for each target or for all, meta-training: train.episodes, or the budget"


@register
class MetaRepair(Method):
    """Repairs from θ_meta, which meta-training learned on the experiences of other environments."""

    name = "metarepair"
    words = "MetaRepair"
    uses = ("failures", "experiences")
    changes = ("weights", "statistics")
    cost = f"the same as finetune; {TRAINED}"
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
    """Repair from `start`, and keep the end of the episode that scores best on validation, over all rates.

    `finetune` calls this with the deployed weights.
    """
    choice = choose(deployed, start, data, context.config, seed=context.seed, budget=context.budget)
    cut = () if choice.whole else ("the budget ran out before all rates and episodes were tried",)
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
    """Walk over all M × S tasks again at the chosen rate.

    The paper's mean acc_s (line 23) needs θ̂ after each of them.
    """
    config = context.config
    return walk(deployed, start, data, config, seed=context.seed, rate=rate, episodes=config.repair.episodes)

"""MetaRepair: the inner steps on D_collect from θ_meta. Source: paper Algorithm 1, lines 13-23."""

from __future__ import annotations

from collections.abc import Iterator

from metarepair.adaptation.meta_test import Step
from metarepair.adaptation.repair_data import RepairData
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.meta_test_method import repair_from, walk_again
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel


@register
class MetaRepair(Method):
    """Repairs from what meta-training on other environments' experiences has learned."""

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

"""MetaRepair: the inner steps on D_collect from θ_meta. Source: paper Algorithm 1, lines 13-23."""

from __future__ import annotations

from metarepair.meta_test import RepairData
from metarepair.methods.base import MethodContext, RepairedModel, register, repair_from
from metarepair.models.build import DeployedModel


@register
class MetaRepair:
    """Repairs from what meta-training on other environments' experiences has learned."""

    name = "metarepair"

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        return repair_from(self.name, context.load_meta(), deployed, data, context)

"""The same inner steps on D_collect from the deployed weights: what repair is without meta-training."""

from __future__ import annotations

from metarepair.meta_test import RepairData, Start
from metarepair.methods.base import MethodContext, RepairedModel, register, repair_from
from metarepair.models.build import DeployedModel


@register
class Finetune:
    """Algorithm 1, lines 13-23, from θ as deployed."""

    name = "finetune"

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        start = Start(
            parameters={k: v.detach().clone() for k, v in deployed.module.named_parameters()},
            buffers={k: v.detach().clone() for k, v in deployed.module.named_buffers()},
        )
        return repair_from(self.name, start, deployed, data, context)

"""The same inner steps on D_collect from the deployed weights: what repair is without meta-training."""

from __future__ import annotations

from metarepair.meta_test import RepairData, Start
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.meta_test_method import repair_from
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel


@register
class Finetune(Method):
    """Algorithm 1, lines 13-23, from θ as deployed."""

    name = "finetune"
    words = "fine-tuned"
    uses = ("failures",)
    changes = ("weights", "statistics")
    cost = "repair.rates × repair.episodes × repair.tasks × inner.steps gradient steps"

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        start = Start(
            parameters={k: v.detach().clone() for k, v in deployed.module.named_parameters()},
            buffers={k: v.detach().clone() for k, v in deployed.module.named_buffers()},
        )
        return repair_from(self.name, start, deployed, data, context)

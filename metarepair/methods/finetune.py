"""Fine-tuning: the repair of MetaRepair without its meta-training.

It starts from the deployed weights and takes gradient steps on small sets of collected failures (tasks), one task after
the other. It does so at every rate in `repair.rates`, and keeps the end of the episode that is best on held-out
failures. MetaRepair does the same from weights that meta-training has prepared, so the difference between the two is
what meta-training contributes.
Source: paper Algorithm 1, lines 13-23, from the deployed weights.
"""

from __future__ import annotations

from collections.abc import Iterator

from metarepair.adaptation.meta_test import Step, start_of
from metarepair.adaptation.repair_data import RepairData
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.metarepair import repair_from, walk_again
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel


@register
class Finetune(Method):
    """Repairs by paper Algorithm 1, lines 13-23, from the deployed weights."""

    name = "finetune"
    words = "fine-tuned"
    uses = ("failures",)
    changes = ("weights", "statistics")
    cost = "repair.rates × repair.episodes × repair.tasks × inner.steps gradient steps"
    walks = True

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        return repair_from(self.name, start_of(deployed), deployed, data, context)

    def steps(
        self, deployed: DeployedModel, data: RepairData, context: MethodContext, *, rate: float
    ) -> Iterator[Step]:
        return walk_again(start_of(deployed), deployed, data, context, rate=rate)

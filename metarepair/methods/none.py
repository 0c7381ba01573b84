"""No repair: return the deployed DNN unchanged.

Its numbers are those before any repair. They are the first row of every table, with which the other methods compare.
"""

from __future__ import annotations

from metarepair.adaptation.repair_data import RepairData
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.models.build import DeployedModel


@register
class NoRepair(Method):
    """Changes nothing."""

    name = "none"
    words = "before repair"
    uses = ()
    changes = ()
    cost = "nothing"

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        return repaired_from(self.name, deployed.module, context.budget)

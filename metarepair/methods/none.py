"""The deployed DNN as it is: the row that every table starts with."""

from __future__ import annotations

from metarepair.inner import FunctionalNet, InnerRule
from metarepair.meta_test import RepairData, accuracy_on
from metarepair.methods.base import MethodContext, RepairedModel, register
from metarepair.models.build import DeployedModel


@register
class NoRepair:
    """Changes nothing."""

    name = "none"

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        net = FunctionalNet(deployed.module, InnerRule(steps=1, rate=1.0, batch_norm="frozen"))
        parameters, buffers = net.parameters(), net.buffers()
        return RepairedModel(
            method=self.name,
            parameters=parameters,
            buffers=buffers,
            validation=accuracy_on(deployed, parameters, buffers, data.validation),
            images_seen=0,
            gradient_steps=0,
        )

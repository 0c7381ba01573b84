"""Batch-norm statistics of the target's D_collect in place of the deployed ones; labels are never read.

Source: Schneider et al. 2020 and Nado et al. 2020 (adaptation of statistics), on all of D_collect's learning
part: mean and variance are averaged over its batches of 500, by their sizes.
"""

from __future__ import annotations

import copy

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from metarepair.meta_test import RepairData, accuracy_on
from metarepair.methods.base import MethodContext, RepairedModel, register
from metarepair.models.build import DeployedModel


@register
class BatchNormAdapt:
    """Mean and variance over D_collect, weights untouched."""

    name = "bn_adapt"

    @torch.no_grad()
    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        module = copy.deepcopy(deployed.module).eval()
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        for norm in norms:
            norm.reset_running_stats()
            norm.training = True
        images = data.learn.images_NHWC_u8
        for start in range(0, len(images) if norms else 0, 500):
            stop = min(start + 500, len(images))
            for norm in norms:
                norm.momentum = (
                    stop - start
                ) / stop  # a mean over all images, also when the last batch is short
            module(deployed.normalise(images[start : start + 500]))
        module.eval()
        parameters = {k: v.detach() for k, v in module.named_parameters()}
        buffers = {k: v.detach() for k, v in module.named_buffers()}
        return RepairedModel(
            method=self.name,
            parameters=parameters,
            buffers=buffers,
            validation=accuracy_on(deployed, parameters, buffers, data.validation),
            images_seen=len(images) if norms else 0,
            gradient_steps=0,
            notes=() if norms else ("this DNN has no batch-norm statistics: nothing to adapt",),
        )

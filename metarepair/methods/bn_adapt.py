"""Replaces the batch-norm statistics by those of the target's D_collect. Labels are never read.

Source: Schneider et al. 2020 and Nado et al. 2020 (adaptation of statistics), on all of D_collect's learning
part: mean and variance are averaged over its batches of 500, by their sizes. A last batch of one image would have no
variance where a norm sees one value per channel, so such an image goes with the batch before it.
"""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from metarepair.adaptation.repair_data import RepairData
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.models.build import DeployedModel
from tasks.records import PixelRows


@register
class BatchNormAdapt(Method):
    """Mean and variance over D_collect, weights untouched."""

    name = "bn_adapt"
    words = "BN-adapted"
    uses = ("unlabelled",)
    changes = ("statistics",)
    cost = "one forward pass over D_collect"

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        images = data.learn.images_NHWC_u8
        adapted = adapt_statistics(deployed, images)
        context.budget.spend(images=len(images) if adapted else 0)
        return repaired_from(
            self.name,
            deployed.module,
            context.budget,
            notes=() if adapted else ("this DNN has no batch-norm statistics: nothing to adapt",),
        )


@torch.no_grad()
def adapt_statistics(deployed: DeployedModel, images_NHWC_u8: PixelRows, *, batch_size: int = 500) -> bool:
    """Puts mean and variance over the images into the DNN's batch norms; whether it has any with statistics."""
    module = deployed.module.eval()
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms or not len(images_NHWC_u8):
        return False
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.training = True
    count = len(images_NHWC_u8)
    starts = range(0, max(count - 1, 1), batch_size)
    for start, end in zip(starts, (*starts[1:], count), strict=True):
        batch = images_NHWC_u8[start:end]
        for norm in norms:
            norm.momentum = len(batch) / (start + len(batch))  # a mean over all images, also of a short batch
        module(deployed.normalise(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
    return True

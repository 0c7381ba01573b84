"""BN adaptation: replace the batch-norm statistics with those of the collected failures.

A batch norm normalises by a mean and variance that it stored while it was trained on clean images. Corrupted images
have others, so the stored ones no longer fit. This method runs the learning part of D_collect through the DNN once and
stores its mean and variance instead. No weight changes and no label is read. A DNN without stored batch-norm statistics
stays as it is.
Source: Schneider et al. 2020 and Nado et al. 2020. Here mean and variance are averaged over batches of 500 images,
weighted by their sizes. A single image left at the end joins the batch before it, because a norm that sees one value
per channel has no variance over one image.
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
    """Stores batch-norm statistics of D_collect; the weights do not change."""

    name = "bn_adapt"
    words = "BN-adapted"
    uses = ("unlabelled",)
    changes = ("statistics",)
    cost = "one forward pass over D_collect"

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        images = data.learn.images_NHWC
        adapted = adapt_statistics(deployed, images)
        context.budget.spend(images=len(images) if adapted else 0)
        return repaired_from(
            self.name,
            deployed.module,
            context.budget,
            notes=() if adapted else ("this DNN has no batch-norm statistics: nothing to adapt",),
        )


@torch.no_grad()
def adapt_statistics(deployed: DeployedModel, images_NHWC: PixelRows, *, batch_size: int = 500) -> bool:
    """Store mean and variance over the images in the DNN's batch norms.

    Returns False, and changes nothing, if there are no images or no batch norm stores statistics.
    """
    module = deployed.module.eval()
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms or not len(images_NHWC):
        return False
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.training = True
    count = len(images_NHWC)
    starts = range(0, max(count - 1, 1), batch_size)
    for start, end in zip(starts, (*starts[1:], count), strict=True):
        batch = images_NHWC[start:end]
        for norm in norms:
            norm.momentum = len(batch) / (start + len(batch))  # a running mean over all images so far
        module(deployed.normalise(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
    return True

"""ROID: Tent on diverse and certain images, whose views are to be classified alike, held near the deployed weights.

As in Tent, only scales and shifts of norms are trained, without labels. The loss is the soft likelihood ratio, whose
gradient does not vanish where the DNN is certain. An image counts if its prediction differs from the mean of the
earlier ones by at least the batch's average. It counts the more, the more it differs and the more certain it is. A
second loss asks that a randomly changed view of an image is classified as the image is. After each step the weights
move a little back to the deployed ones.
Source: Marsden, Döbler and Yang 2024 (Universal Test-time Adaptation through Weight Ensembling, Diversity Weighting,
and Prior Correction), Sec. 3, with the settings and views of the authors' code (test-time-adaptation) for CIFAR-10-C:
Adam at 1e-3, batches of 200, temperature 1/3, 1% of the deployed weights per step. For ImageNet-C and a ResNet-50 they
use SGD at 2.5e-4 with momentum 0.9 and batches of 64. ROID adapts while it predicts; here it adapts on D_collect, in
several passes, and is then frozen, because a repair must give a DNN to deploy. For the same reason there is no prior
correction: it changes the predictions of a test batch by the other predictions of that batch.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.section import Fraction, Positive, Rate, Section
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.bn_adapt import adapt_statistics
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.methods.tent import affine_of, batches, entropies, own_batch, require_affine, train_only
from metarepair.models.build import DeployedModel
from tasks.keys import keyed_generator

# B images in a batch, V of them with a view, C H W, K classes

MEMORY = 0.9  # of the mean prediction, per step
CLIP, EPSILON = 0.99, 1e-5  # of the soft likelihood ratio: largest probability; added inside the logarithm
COLOURS = (  # applied in random order, each with a random number of its range
    (V.adjust_brightness, 0.6, 1.4),
    (V.adjust_contrast, 0.7, 1.3),
    (V.adjust_saturation, 0.5, 1.5),
    (V.adjust_hue, -0.06, 0.06),
    (V.adjust_gamma, 0.7, 1.3),
)
DEGREES, SHIFT, ZOOM = 15.0, 1 / 8, 0.1  # largest rotation; shift, as a share of the side; change of size


class RoidSettings(Section):
    """Settings of ROID. Published for CIFAR-10-C: the defaults."""

    epochs: Positive = Field(10, description="Passes over D_collect.")
    batch_size: Positive = Field(200, description="Images per step.")
    rate: Rate = Field(1e-3, description="Learning rate of Adam.")
    temperature: Annotated[float, Field(ge=0.1)] = Field(
        1 / 3, description="Temperature of the images' weights; the higher, the more alike they are."
    )
    deployed_share: Fraction = Field(
        0.01,
        description="Share of the deployed weights in the mean that replaces the weights after each step.",
    )
    consistency: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Weight of the loss that compares an image with its view; at 0, no views are made."
    )


@register
class Roid(Method):
    """Trains the norms' scales and shifts on diverse and certain images, and stores new batch-norm statistics."""

    name = "roid"
    words = "ROID"
    uses = ("unlabelled",)
    changes = ("weights", "statistics")
    cost = "epochs × (D_collect / batch_size) steps on the norms' parameters, and passes over views of the images"
    Settings = RoidSettings

    def check(self, module: nn.Module, settings: Any) -> None:
        require_affine(self.name, module)

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        settings = context.settings
        assert isinstance(settings, RoidSettings)
        self.check(deployed.module, settings)
        module, images = deployed.module.eval(), data.learn.images_NHWC
        affine = affine_of(module)
        train_only(module, affine)
        start = [parameter.detach().clone() for parameter in affine]
        optimizer = torch.optim.Adam(affine, lr=settings.rate)
        pixels = images[:1].dtype == np.uint8
        mean_K: Tensor | None = None
        for step, x_BCHW in enumerate(
            batches(deployed, images, context, settings.epochs, settings.batch_size)
        ):
            with own_batch(module):
                logits_BK = module(x_BCHW)
                weight_B, mean_K = image_weights(logits_BK.detach(), mean_K, settings.temperature)
                loss, passes = (weight_B * soft_likelihood_ratio(logits_BK)).mean(), len(x_BCHW)
                if settings.consistency:
                    rows_V = viewed_rows(weight_B)
                    generator = keyed_generator("roid-view", context.seed, step)
                    view_VCHW = view_of(deployed, x_BCHW[rows_V], generator, pixels=pixels)
                    unlike_V = symmetric_cross_entropy(module(view_VCHW), logits_BK[rows_V])
                    loss = loss + settings.consistency * (weight_B[rows_V] * unlike_V).sum() / len(x_BCHW)
                    passes += len(rows_V)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            with torch.no_grad():
                for parameter, before in zip(affine, start, strict=True):
                    parameter.lerp_(before, settings.deployed_share)
            context.budget.spend(images=passes, steps=1)
        adapt_statistics(deployed, images)
        return repaired_from(self.name, module, context.budget)


def soft_likelihood_ratio(logits_BK: Tensor) -> Tensor:
    """Return the negative log ratio [B] of each class to all others, averaged over the predicted probabilities."""
    p_BK = logits_BK.softmax(1).clamp(max=CLIP)
    return -(p_BK * (p_BK / (1 - p_BK) + EPSILON).log()).sum(1)


def symmetric_cross_entropy(view_VK: Tensor, logits_VK: Tensor) -> Tensor:
    """Return the mean [V] of the cross-entropies of one prediction under the other, in both directions, in nats."""
    one = (logits_VK.softmax(1) * view_VK.log_softmax(1)).sum(1)
    other = (view_VK.softmax(1) * logits_VK.log_softmax(1)).sum(1)
    return -(one + other) / 2


def image_weights(logits_BK: Tensor, mean_K: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the weight [B] of each image, and the new mean prediction; None stands for the uniform one."""
    p_BK = logits_BK.softmax(1)
    mean_K = torch.full_like(p_BK[0], 1 / p_BK.shape[1]) if mean_K is None else mean_K
    diversity_B = _to_unit_range(1 - F.cosine_similarity(mean_K[None], p_BK))
    certainty_B = _to_unit_range(-entropies(logits_BK))
    weight_B = (diversity_B * certainty_B / temperature).exp()
    weight_B[diversity_B < diversity_B.mean()] = 0
    return weight_B, MEMORY * mean_K + (1 - MEMORY) * p_BK.mean(0)


def _to_unit_range(value_B: Tensor) -> Tensor:
    """Return the values moved and scaled to 0..1; all 0 if they are equal."""
    low, high = value_B.aminmax()
    return (value_B - low) / (high - low).clamp_min(torch.finfo(value_B.dtype).tiny)


def viewed_rows(weight_B: Tensor) -> Tensor:
    """Return the rows [V] of the images that count; of all if only one does, as a batch norm may need two."""
    rows_V = weight_B.nonzero().flatten()
    return rows_V if len(rows_V) > 1 else torch.arange(len(weight_B), device=weight_B.device)


def view_of(
    deployed: DeployedModel, x_BCHW: Tensor, generator: np.random.Generator, *, pixels: bool
) -> Tensor:
    """Return a view of normalised images: other colours, moved, perhaps mirrored, with one draw for all of them.

    pixels: the images were pixels before they were normalised; colours change only of such ones, grey or RGB.
    """
    colours = pixels and x_BCHW.shape[1] in (1, 3)
    if colours:
        mean, std = (x_BCHW.new_tensor(values)[:, None, None] for values in (deployed.mean, deployed.std))
        x_BCHW = (x_BCHW * std + mean).clamp(0, 1)
        for place in generator.permutation(len(COLOURS)):
            change, low, high = COLOURS[place]
            x_BCHW = change(x_BCHW, generator.uniform(low, high)).clamp(0, 1)  # gamma takes no number below 0
        x_BCHW = (x_BCHW - mean) / std
    return _moved(x_BCHW, generator)


def _moved(x_BCHW: Tensor, generator: np.random.Generator) -> Tensor:
    """Return the images rotated, shifted, zoomed and perhaps mirrored; what comes in at an edge is reflected."""
    height, width = x_BCHW.shape[2:]
    top, left = height // 2, width // 2
    moved_BCHW: Tensor = V.affine(
        F.pad(x_BCHW, (left, left, top, top), mode="reflect"),
        angle=generator.uniform(-DEGREES, DEGREES),
        translate=[generator.uniform(-SHIFT, SHIFT) * side for side in (width, height)],
        scale=generator.uniform(1 - ZOOM, 1 + ZOOM),
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    moved_BCHW = moved_BCHW[:, :, top : top + height, left : left + width]
    return moved_BCHW.flip(3) if generator.random() < 0.5 else moved_BCHW

"""Transform images by transformation vectors: all variants of all images in one resampling.

Source: Gao et al., ICSE 2020 (SENSEI); ranges and steps of the authors' code. A variant is one affine map about the
centre of the image, bilinear, black outside, in the order of torchvision's `affine`: shear, zoom, rotation (clockwise),
translation. Contrast and brightness follow, clamped to 0..255. Their code resamples for each transformation in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

# B images, V variants of an image, G genes, C H W pixels

Genes = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Gene:
    """One number of a transformation vector: its range, a mutation's step, and the value that changes nothing."""

    name: str
    low: float
    high: float
    step: float
    neutral: float = 0.0


def spatial_genes(*, rotation: float, translation: float, shear: float) -> tuple[Gene, ...]:
    """Return rotation (degrees), translations (pixels) and horizontal shear, each from minus to plus its argument."""
    sizes = {"rotation": rotation, "translation_x": translation, "translation_y": translation, "shear": shear}
    steps = {"rotation": 1 / 5, "translation_x": 1 / 3, "translation_y": 1 / 3, "shear": 1 / 5}
    return tuple(
        Gene(name=name, low=-size, high=size, step=size * steps[name]) for name, size in sizes.items()
    )


FILTER_GENES = (
    Gene(name="zoom", low=0.9, high=1.1, step=0.02, neutral=1.0),
    Gene(name="brightness", low=-32.0, high=32.0, step=4.0),
    Gene(name="contrast", low=0.8, high=1.2, step=0.05, neutral=1.0),
)


def variants(images_BCHW: Tensor, genes_BVG: Tensor, genes: Sequence[Gene]) -> Tensor:
    """Return each image transformed by each of its vectors [B, V, H, W, C], with pixels from 0 to 255.

    All variants are sampled at once from a single copy of the image; each is the same as if it were sampled alone.
    """
    batch, channels, height, width = images_BCHW.shape
    number = genes_BVG.shape[1]
    value = {gene.name: genes_BVG[:, :, place] for place, gene in enumerate(genes)}
    theta = _inverse_maps(value, height=height, width=width).flatten(0, 1)
    grid = F.affine_grid(theta, [len(theta), 1, height, width], align_corners=False)
    # The sampler sees the variants of an image as one tall image, so that the image need not be copied for each.
    tall_BCHW = F.grid_sample(
        images_BCHW, grid.view(batch, number * height, width, 2), mode="bilinear", align_corners=False
    )
    variants_BVHWC = tall_BCHW.reshape(batch, channels, number, height, width).permute(0, 2, 3, 4, 1)
    if "contrast" in value:
        contrast, brightness = (value[name][:, :, None, None, None] for name in ("contrast", "brightness"))
        variants_BVHWC = (variants_BVHWC * contrast + brightness).clamp(0, 255)
    return variants_BVHWC.contiguous()


def _inverse_maps(value: dict[str, Tensor], *, height: int, width: int) -> Tensor:
    """Return maps [B, V, 2, 3] from a variant's coordinates to the image's, in the sampler's range of -1 to 1."""
    radians, slope = value["rotation"].deg2rad(), value["shear"]
    zoom = value.get("zoom", torch.ones_like(radians))
    cos, sin = radians.cos() / zoom, radians.sin() / zoom
    # Undo the rotation and zoom [[cos, sin], [-sin, cos]], then the shear [[1, slope], [0, 1]].
    xx, xy = cos - slope * sin, sin + slope * cos
    yx, yy = -sin, cos
    dx, dy = value["translation_x"], value["translation_y"]
    x0, y0 = -(xx * dx + xy * dy), -(yx * dx + yy * dy)
    row_x = torch.stack([xx, xy * height / width, 2 * x0 / width], -1)
    row_y = torch.stack([yx * width / height, yy, 2 * y0 / height], -1)
    return torch.stack([row_x, row_y], -2)

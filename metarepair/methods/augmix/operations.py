"""Mix augmented versions of images as AugMix does, a whole batch at a time.

Source: Hendrycks et al. 2020 (AugMix), Algorithm 1 and the operations of their code for CIFAR-10. Each operation is
scaled by level / 10 with level ~ U(0.1, severity). Geometric operations are bilinear with black outside, as in Pillow.
torchvision's AugMix differs: levels are whole, from 0 to severity − 1 of ten steps; posterize and solarize start at 4
bits and at 255; depth and operations are drawn once for a whole batch; shears are about the centre; edges fade into
black; four more operations, which also occur in corruptions, are on by default; the mixture is truncated to whole
numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V

from tasks.records import Ints

# B images, W chains per image (or width), D operations per chain, C channels, H W pixels

Floats = NDArray[np.float64]

TONES = ("autocontrast", "equalize", "posterize", "solarize")
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = (*TONES, *MOVES)
STYLE = len(OPERATIONS)  # the number of a tenth operation: the image in another style
NOTHING = -1  # no operation: past the end of a chain
DEEPEST = 3


@dataclass(frozen=True, kw_only=True)
class MixDraws:
    """The random draws for each image.

    operations: indices into OPERATIONS, STYLE or NOTHING. levels: from 0.1 to the severity, with a sign. weights: of
    the chains, summing to 1. share: the share m of the chains in the mixture.
    """

    operations_BWD: Ints
    levels_BWD: Floats
    weights_BW: Floats
    share_B: Floats

    @property
    def styled_BW(self) -> NDArray[np.bool_]:
        """Which chains start from their image in another style."""
        styled: NDArray[np.bool_] = (self.operations_BWD == STYLE).any(2)
        return styled


def sample_mix(
    generator: np.random.Generator,
    images: int,
    *,
    severity: float,
    width: int,
    depth: int | None = None,
    style: bool = False,
) -> MixDraws:
    """Draw for `images` images: `width` chains of `depth` operations each, or of 1 to 3 if `depth` is None."""
    deepest = depth or DEEPEST
    shape = (images, width, deepest)
    operations_BWD = generator.integers(len(OPERATIONS) + style, size=shape)
    if depth is None:
        depth_BW1 = generator.integers(1, deepest + 1, size=(images, width, 1))
        operations_BWD[np.arange(deepest) >= depth_BW1] = NOTHING
    signs_BWD = generator.choice((-1.0, 1.0), size=shape)
    return MixDraws(
        operations_BWD=operations_BWD,
        levels_BWD=generator.uniform(0.1, severity, size=shape) * signs_BWD,
        weights_BW=generator.dirichlet(np.ones(width), size=images),
        share_B=generator.beta(1, 1, size=images),
    )


def mixture(images_BCHW_u8: Tensor, draws: MixDraws, *, styled_BCHW_u8: Tensor | None = None) -> Tensor:
    """Return (1 − m) x + m Σ wᵢ chainᵢ(x) for each image x, float32 from 0 to 255.

    A chain with STYLE among its operations starts from the image in `styled_BCHW_u8`, and then applies the others.
    """
    device, (_, width, deepest) = images_BCHW_u8.device, draws.operations_BWD.shape
    chains_BWCHW = images_BCHW_u8[:, None].repeat(1, width, 1, 1, 1)
    if styled_BCHW_u8 is not None:
        b, w = (torch.from_numpy(rows).to(device) for rows in np.nonzero(draws.styled_BW))
        chains_BWCHW[b, w] = styled_BCHW_u8[b]
    flat = chains_BWCHW.flatten(0, 1)  # a view: operations write into the chains
    for step in range(deepest):
        operate(flat, draws.operations_BWD[..., step].ravel(), draws.levels_BWD[..., step].ravel())
    share_B1 = torch.from_numpy(draws.share_B).to(device, torch.float32)[:, None]
    weights_BW = share_B1 * torch.from_numpy(draws.weights_BW).to(device, torch.float32)
    mixed = torch.einsum("bncij,bn->bcij", chains_BWCHW.float(), weights_BW)
    return mixed + (1 - share_B1)[..., None, None] * images_BCHW_u8


def operate(images_BCHW_u8: Tensor, operations_B: Ints, levels_B: Floats) -> None:
    """Apply one operation to each image, in place. Images with the same operation are processed together."""
    device = images_BCHW_u8.device
    for number, name in enumerate(TONES):
        rows = np.flatnonzero(operations_B == number)
        if len(rows):
            at = torch.from_numpy(rows).to(device)
            images_BCHW_u8[at] = _TONES[name](images_BCHW_u8[at], np.abs(levels_B[rows]))
    moved = (operations_B >= len(TONES)) & (operations_B < STYLE)
    rows = np.flatnonzero(moved)
    if len(rows):
        at = torch.from_numpy(rows).to(device)
        height, width = images_BCHW_u8.shape[2:]
        matrices = move_matrices(operations_B[rows], levels_B[rows], height=height, width=width)
        images_BCHW_u8[at] = move(images_BCHW_u8[at], matrices)


def move_matrices(operations_B: Ints, levels_B: Floats, *, height: int, width: int) -> Floats:
    """Return matrices [B, 2, 3] of MOVES, from coordinates in the new image to those in the old one, in pixels."""
    names = np.array(OPERATIONS)[operations_B]
    matrices = np.tile(np.eye(2, 3), (len(names), 1, 1))
    turned = names == "rotate"
    angle = -np.deg2rad(np.trunc(30 * levels_B[turned] / 10))
    turn = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], 1).reshape(-1, 2, 2)
    centre = np.array([width / 2, height / 2])
    matrices[turned] = np.concatenate([turn, (centre - turn @ centre)[..., None]], 2)
    for name, place, size in (
        ("shear_x", (0, 1), 0.3),
        ("shear_y", (1, 0), 0.3),
        ("translate_x", (0, 2), width / 3),
        ("translate_y", (1, 2), height / 3),
    ):
        rows = np.flatnonzero(names == name)
        by = size * levels_B[rows] / 10
        matrices[rows, place[0], place[1]] = np.trunc(by) if name.startswith("translate") else by
    return matrices


def flip_and_crop_matrices(
    generator: np.random.Generator, images: int, *, width: int, flip: bool, shift: int
) -> Floats:
    """Return matrices that flip half of the images left to right, and shift each by up to `shift` pixels."""
    matrices = np.tile(np.eye(2, 3), (images, 1, 1))
    matrices[:, :, 2] = generator.integers(-shift, shift + 1, size=(images, 2))
    flipped_B = generator.random(images) < 0.5
    if flip:
        matrices[flipped_B, 0, 0] = -1
        matrices[flipped_B, 0, 2] += width
    return matrices


def move(images_BCHW_u8: Tensor, matrices_B23: Floats) -> Tensor:
    """Return the images moved by their matrices, bilinear; pixels from outside the image are black."""
    _, _, height, width = images_BCHW_u8.shape
    device = images_BCHW_u8.device
    matrices = torch.from_numpy(matrices_B23).to(device, torch.float32)
    y_HW, x_HW = torch.meshgrid(
        *(torch.arange(n, device=device) + 0.5 for n in (height, width)), indexing="ij"
    )
    places_HW3 = torch.stack([x_HW, y_HW, torch.ones_like(x_HW)], 2)
    from_BHW2 = torch.einsum("hwi,bji->bhwj", places_HW3, matrices)
    size = torch.tensor([width, height], device=device)
    inside_BHW = ((from_BHW2 >= 0) & (from_BHW2 < size)).all(3)
    # As Pillow does: edge colours up to the edge, then black. Padding with zeros would blur the edge.
    moved = F.grid_sample(
        images_BCHW_u8.float(), 2 * from_BHW2 / size - 1, padding_mode="border", align_corners=False
    )
    return (moved.round() * inside_BHW[:, None]).to(torch.uint8)


def _posterize(images_BCHW_u8: Tensor, levels_B: Floats) -> Tensor:
    lost_bits_B = 4 + (4 * levels_B / 10).astype(np.int64)
    masks_B = torch.from_numpy((256 - 2**lost_bits_B).astype(np.uint8)).to(images_BCHW_u8.device)
    return images_BCHW_u8 & masks_B[:, None, None, None]


def _solarize(images_BCHW_u8: Tensor, levels_B: Floats) -> Tensor:
    threshold_B = torch.from_numpy(256 - (256 * levels_B / 10).astype(np.int64)).to(images_BCHW_u8.device)
    bright = images_BCHW_u8 >= threshold_B.to(torch.int16)[:, None, None, None]
    return torch.where(bright, 255 - images_BCHW_u8, images_BCHW_u8)


_TONES: dict[str, Callable[[Tensor, Floats], Tensor]] = {
    "autocontrast": lambda x, _: V.autocontrast(x),
    "equalize": lambda x, _: V.equalize(x),
    "posterize": _posterize,
    "solarize": _solarize,
}

"""Split images into the four bands of one level of Haar wavelets, and join the bands again.

Source: Yoo et al. 2019 (Photorealistic Style Transfer via Wavelet Transforms), Sec. 3.1: kernels LLᵀ, LHᵀ, HLᵀ, HHᵀ of
L = (1, 1)/√2 and H = (−1, 1)/√2.
"""

from __future__ import annotations

import torch
from torch import Tensor

# F bands LL, LH, HL, HH, B images, C channels, H W pixels, h w = H/2 W/2

BANDS = ("LL", "LH", "HL", "HH")
_SIGNS = ((1, 1), (1, 1)), ((-1, 1), (-1, 1)), ((-1, -1), (1, 1)), ((1, -1), (-1, 1))


def kernels(like: Tensor) -> Tensor:
    """Return the four kernels [F, 2, 2], on the device and in the precision of `like`."""
    return torch.tensor(_SIGNS, dtype=like.dtype, device=like.device) / 2


def haar(x_BCHW: Tensor) -> Tensor:
    """Return the bands [F, B, C, h, w] of images with an even number of rows and columns."""
    batch, channels, height, width = x_BCHW.shape
    blocks = x_BCHW.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return torch.einsum("bchiwj,fij->fbchw", blocks, kernels(x_BCHW))


def spread(bands_FBChw: Tensor) -> Tensor:
    """Return each band's contribution to the image [F, B, C, H, W]; the contributions sum to the image."""
    parts = torch.einsum("fbchw,fij->fbchiwj", bands_FBChw, kernels(bands_FBChw))
    return parts.flatten(5, 6).flatten(3, 4)


def inverse_haar(bands_FBChw: Tensor) -> Tensor:
    """Return the images [B, C, H, W] with these bands."""
    return spread(bands_FBChw).sum(0)

"""Tensors of images in, filtered or resampled tensors out: what corruptions on a GPU share."""

# B images in a batch, H W C pixels

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tasks.corruptions.blur import gaussian_taps, streak_kernels


def to_device(array: NDArray[np.generic], like: Tensor) -> Tensor:
    """On the device of `like`; 16-bit words become int32, which torch can index by."""
    whole = array.astype(np.int32) if array.dtype == np.uint16 else np.ascontiguousarray(array)
    return torch.from_numpy(whole).to(like.device)


def _folded(size: int, reach: int, mode: str) -> NDArray[np.int64]:
    """The places inside that `reach` more on either side are read from."""
    places = np.arange(-reach, size + reach)
    if mode == "nearest":
        return places.clip(0, size - 1)
    # Mirrored about the edge of the outermost pixel, or about its centre.
    period = 2 * size if mode == "reflect" else max(2 * size - 2, 1)
    places = places % period
    return np.minimum(places, period - places - (1 if mode == "reflect" else 0))


def framed(images: Tensor, reach: int, mode: str) -> Tensor:
    """[B, H, W, C] to float32 [B, C, H + 2·reach, W + 2·reach]."""
    rows, columns = (to_device(_folded(size, reach, mode), images) for size in images.shape[1:3])
    return images.permute(0, 3, 1, 2).to(torch.float32)[:, :, rows][:, :, :, columns]


def smooth(images: Tensor, sigma: float, *, mode: str = "nearest", truncate: float = 4.0) -> Tensor:
    """Gaussian smoothing of [B, H, W, C] over H and W."""
    taps = to_device(gaussian_taps(sigma, truncate=truncate), images)
    padded = framed(images, len(taps) // 2, mode)
    channels = padded.shape[1]
    down = taps.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1)
    smoothed = F.conv2d(F.conv2d(padded, down, groups=channels), down.transpose(2, 3), groups=channels)
    return smoothed.permute(0, 2, 3, 1)


def streaks(layers: Tensor, angles_B: Sequence[float], *, radius: int, sigma: float) -> Tensor:
    """Every image [B, H, W, C] along its own angle: a convolution with as many groups as images."""
    reach = 2 * radius
    kernels = np.zeros((len(layers), 2 * reach + 1, 2 * reach + 1), np.float32)
    for kernel, degrees in zip(kernels, angles_B, strict=True):
        for part, top, left in streak_kernels(radius, sigma=sigma, degrees=degrees):
            height, width = part.shape
            kernel[reach + top : reach + top + height, reach + left : reach + left + width] += part
    padded = framed(layers, reach, "nearest").transpose(0, 1)
    return F.conv2d(padded, to_device(kernels, layers)[:, None], groups=len(layers)).permute(1, 2, 3, 0)


def bilinear(images: Tensor, rows: Tensor, columns: Tensor, *, mode: str) -> Tensor:
    """Images [B, H, W, C] at fractional positions [B, H, W], mirrored beyond the edge."""
    batch, height, width, channels = images.shape
    flat = images.reshape(batch, -1, channels)
    top, left = rows.floor(), columns.floor()
    down, right = ((rows - top)[..., None].float(), (columns - left)[..., None].float())

    def fold(places: Tensor, size: int) -> Tensor:
        period = 2 * size if mode == "reflect" else 2 * size - 2
        places = places.to(torch.int64) % period
        return torch.minimum(places, period - places - (1 if mode == "reflect" else 0))

    def at(row: Tensor, column: Tensor) -> Tensor:
        places = (fold(row, height) * width + fold(column, width)).reshape(batch, -1, 1)
        return flat.gather(1, places.expand(-1, -1, channels)).reshape(images.shape)

    above = torch.lerp(at(top, left), at(top, left + 1), right)
    return torch.lerp(above, torch.lerp(at(top + 1, left), at(top + 1, left + 1), right), down)

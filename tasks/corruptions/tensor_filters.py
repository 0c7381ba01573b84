"""Tensors of images in, smoothed, streaked, zoomed or resampled tensors out: what corruptions share on a device.

Sums run over shifts of the whole batch. Convolutions and matrix products would do the same in TF32 or, under
autocast, in 16 bits, as a setting elsewhere in the process will have it, and miss the grey level.
"""

# B images in a batch, H W C pixels, P = H·W pixel positions, S shifts

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.corruptions.blur import NUM_ANGLES, ZoomTaps, gaussian_taps, streak_kernels, zoom_taps
from tasks.corruptions.severity import Levels

# Beyond the edge: the outermost pixel repeated; the image mirrored about its edge; about its outermost pixels.
Edge = Literal["nearest", "reflect", "mirror"]


def to_device(array: NDArray[np.generic], like: Tensor) -> Tensor:
    """A copy on the device of `like`; 16-bit words become int32, which torch can index by."""
    if array.dtype == np.uint16:
        signed = torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).to(like.device)
        return signed.to(torch.int32) & 0xFFFF
    return torch.tensor(array, device=like.device)


def folded(places: Tensor, size: int, mode: Edge) -> Tensor:
    """The places 0..size-1 that whole places beyond the edge are read from."""
    if mode == "nearest":
        return places.clamp(0, size - 1)
    period = 2 * size if mode == "reflect" else 2 * size - 2
    places = places % period
    return torch.minimum(places, period - places - (1 if mode == "reflect" else 0))


def framed(images: Tensor, reach: int, *, axis: int, mode: Edge) -> Tensor:
    """Images with `reach` more pixels on either side of one axis."""
    size = images.shape[axis]
    places = torch.arange(-reach, size + reach, device=images.device)
    return images.index_select(axis, folded(places, size, mode))


def smooth(images: Tensor, sigma: float, *, mode: Edge = "nearest", truncate: float = 4.0) -> Tensor:
    """Gaussian smoothing of [B, H, W, C] over H and W; float32."""
    taps = gaussian_taps(sigma, truncate=truncate).tolist()
    images = images.to(torch.float32)
    for axis in (2, 1):
        wide = framed(images, len(taps) // 2, axis=axis, mode=mode)
        size = images.shape[axis]
        images = _weighted((wide.narrow(axis, i, size), weight) for i, weight in enumerate(taps))
    return images


def filtered(images: Tensor, kernel: Levels) -> Tensor:
    """[B, H, W, C] filtered by an odd square kernel, mirrored beyond the edge; float32."""
    reach, (height, width) = len(kernel) // 2, images.shape[1:3]
    wide = images.to(torch.float32)
    for axis in (1, 2):
        wide = framed(wide, reach, axis=axis, mode="mirror")
    return _weighted(
        (wide[:, top : top + height, left : left + width], float(kernel[top, left]))
        for top, left in np.argwhere(kernel).tolist()
    )


def _weighted(terms: Iterable[tuple[Tensor, float]]) -> Tensor:
    """The sum of tensors times their weights; there is at least one."""
    each = iter(terms)
    first, weight = next(each)
    total = first * weight
    for term, weight in each:
        total.add_(term, alpha=weight)
    return total


def streaks(layers: Tensor, angles_B: Sequence[float], *, radius: int, sigma: float) -> Tensor:
    """Every image [B, H, W, C] averaged along its own angle, the edge repeated; float32."""
    shifts_S3B = _padded([_shifts(radius, sigma=sigma, degrees=degrees) for degrees in angles_B])
    batch, height, width = layers.shape[:3]
    images_B, rows_H, columns_W = (torch.arange(n, device=layers.device) for n in (batch, height, width))
    total = torch.zeros(layers.shape, dtype=torch.float32, device=layers.device)
    for down_B, right_B, weight_B in to_device(shifts_S3B, layers):
        rows_BH = folded(rows_H + down_B[:, None].to(torch.int64), height, "nearest")
        columns_BW = folded(columns_W + right_B[:, None].to(torch.int64), width, "nearest")
        shifted = layers[images_B[:, None, None], rows_BH[:, :, None], columns_BW[:, None]]
        total.addcmul_(shifted.to(torch.float32), weight_B[:, None, None, None])
    return total


@functools.lru_cache(maxsize=5 * NUM_ANGLES)
def _shifts(radius: int, *, sigma: float, degrees: float) -> Levels:
    """A streak's shifts [S, 3]: down, right and weight."""
    found = [
        (top + down, left + right, kernel[down, right])
        for kernel, top, left in streak_kernels(radius, sigma=sigma, degrees=degrees)
        for down, right in np.argwhere(kernel).tolist()
    ]
    return np.array(found, np.float32)


def _padded(shifts_B: Sequence[Levels]) -> Levels:
    """Shifts of B images as [S, 3, B]; the shorter lists end in shifts that weigh nothing."""
    padded: Levels = np.zeros((max(map(len, shifts_B)), 3, len(shifts_B)), np.float32)
    for i, shifts_S3 in enumerate(shifts_B):
        padded[: len(shifts_S3), :, i] = shifts_S3
    return padded


def zoomed(images: Tensor, factor: float) -> Tensor:
    """[B, H, W, C] float32 zoomed into the centre."""
    for axis in (1, 2):
        images = _stretched(images, zoom_taps(images.shape[axis], factor), axis=axis)
    return images


def _stretched(images: Tensor, taps: ZoomTaps, *, axis: int) -> Tensor:
    lower, upper = (images.index_select(axis, to_device(t, images)) for t in (taps.lower, taps.upper))
    shape = [1] * images.ndim
    shape[axis] = -1
    return torch.lerp(lower, upper, to_device(taps.fraction.astype(np.float32), images).reshape(shape))


def bilinear(images: Tensor, rows: Tensor, columns: Tensor, *, mode: Edge) -> Tensor:
    """Images [B, H, W, C] float32 at fractional positions [B, H, W], mirrored beyond the edge."""
    batch, height, width, channels = images.shape
    flat_BPC = images.reshape(batch, -1, channels)
    top, left = rows.floor(), columns.floor()
    down, right = ((rows - top)[..., None].float(), (columns - left)[..., None].float())
    rows_2, columns_2 = (
        [folded(first.to(torch.int64) + i, size, mode) for i in (0, 1)]
        for first, size in ((top, height), (left, width))
    )

    def across(row: Tensor) -> Tensor:
        """Between left and right, in the given row."""
        places = ((row * width + column).reshape(batch, -1, 1) for column in columns_2)
        near, far = (flat_BPC.gather(1, p.expand(-1, -1, channels)) for p in places)
        return torch.lerp(near.reshape(images.shape), far.reshape(images.shape), right)

    return torch.lerp(across(rows_2[0]), across(rows_2[1]), down)

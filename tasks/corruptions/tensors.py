"""Tensors of images, a corruption and a severity in; corrupted tensors on the same device out.

What is drawn is drawn as in `corrupt`: on the CPU, from each image's own key, and copied as words or as layers
(plasma, snow, crops of frost) of the images' size. The pixels' arithmetic is the device's, so the result is that of
`corrupt` within a grey level. Spatter (edges, distances), pixelate and JPEG are no tensor work: their pixels go to
the CPU, through `corrupt`, and back.
"""

# B images in a batch, H W C pixels, P = H·W pixel positions

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.corruptions import checked_ids, corrupt, dose_for, resolve
from tasks.corruptions.blur import angles, disk_kernel, glass_sources
from tasks.corruptions.digital import affine_map, anchor_points, is_wide, smooth_shifts
from tasks.corruptions.draws import NUM_WORDS, WORD_BITS, draw_words, normal_quantiles, uniforms
from tasks.corruptions.image_property import brighter_levels, stretch
from tasks.corruptions.noise import shot_levels, whole_levels
from tasks.corruptions.plasma import haze
from tasks.corruptions.severity import NUDGE, Dose, Levels
from tasks.corruptions.tensor_filters import bilinear, filtered, smooth, streaks, to_device, zoomed
from tasks.corruptions.weather import GREY_WEIGHTS, frost_crops, snow_layers
from tasks.errors import DataError
from tasks.records import Ints

# Values worked on at once: a step's few arrays stay below 100 MB, and near a GPU's cache.
CHUNK_VALUES = 2**22


def corrupt_tensor(
    images: Tensor,
    *,
    image_ids_B: Tensor | Ints | Sequence[int],
    corruption: str,
    severity: int,
    seed: int,
    table: str = "cifar",
) -> Tensor:
    """`corrupt` for tensors: corrupted copies of the images, on the images' device.

    images: uint8 [B, H, W, 3] (RGB), [B, H, W, 1] or [B, H, W] (grey) on any device, any memory layout
    The other arguments, and the errors, are those of `corrupt`.

    Returns uint8 of the same shape: on every device what `corrupt` returns, within one grey level; to the
    byte where whole levels are looked up. The pixels of the corruptions in `ON_DEVICE` never leave the device.
    """
    name = resolve(corruption)
    dose_of = functools.partial(dose_for, corruption=name, severity=severity, seed=seed, table=table)
    dose_of([])  # settings first: no images yet
    ids = _checked(images, image_ids_B)
    if name not in ON_DEVICE:
        there = corrupt(
            images.cpu().numpy(), image_ids_B=ids, corruption=name, severity=severity, seed=seed, table=table
        )
        return torch.from_numpy(there).to(images.device)
    images_BHWC = images if images.ndim == 4 else images[..., None]
    corrupted_BHWC = torch.empty_like(images_BHWC, memory_format=torch.contiguous_format)
    chunk = max(1, CHUNK_VALUES // max(1, math.prod(images_BHWC.shape[1:])))
    for start in range(0, len(ids), chunk):
        rows = slice(start, start + chunk)
        corrupted_BHWC[rows] = _truncate(_APPLY[name](images_BHWC[rows].contiguous(), dose_of(ids[rows])))
    return corrupted_BHWC.reshape(images.shape)


def _checked(images: Tensor, image_ids_B: Tensor | Ints | Sequence[int]) -> list[int]:
    """The ids as plain integers, after all that can be wrong with images and ids has been ruled out."""
    if not isinstance(images, Tensor):
        raise DataError(
            f"images are {type(images).__name__}; corrupt_tensor takes uint8 tensors [B, H, W, 3]. "
            "torch.from_numpy makes one from an array, which tasks.corruptions.corrupt takes as it is"
        )
    if images.dtype != torch.uint8:
        text = (
            f"images are {images.dtype}; corrupt_tensor takes uint8 tensors [B, H, W, 3] with values 0..255"
        )
        remedy = (
            ". From 0..1, (255 * images).round().to(torch.uint8) makes them"
            if images.is_floating_point()
            else ". From 0..255, images.to(torch.uint8) makes them"
        )
        raise DataError(f"{text}{remedy}")
    if images.layout != torch.strided:
        raise DataError(
            f"images have the layout {images.layout}; corrupt_tensor takes dense ones: to_dense()"
        )
    given = image_ids_B.cpu().numpy() if isinstance(image_ids_B, Tensor) else image_ids_B
    # A stand-in of the same shape that takes no memory: the checks are those of the CPU.
    return checked_ids(np.broadcast_to(np.uint8(0), tuple(images.shape)), given)


def _truncate(levels: Tensor) -> Tensor:
    """Clip to 0..255 and cut the fraction off; whole levels are left as they are."""
    if levels.dtype == torch.uint8:
        return levels
    return (levels + NUDGE).clamp(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=4)  # of shot noise 16 MB, else below 300 kB
def _table(build: Callable[..., NDArray[Any]], *constants: float, device: torch.device) -> Tensor:
    """The table that `build` makes of the constants, kept on the device from one call to the next."""
    return torch.tensor(build(*constants), device=device)


def _words(images: Tensor, dose: Dose) -> Tensor:
    return to_device(draw_words(tuple(images.shape), dose), images)


def gaussian_noise(images: Tensor, dose: Dose) -> Tensor:
    noise = _table(whole_levels, *dose.constants, device=images.device)[_words(images, dose)]
    return (noise + images).clamp(0, 255).to(torch.uint8)


def speckle_noise(images: Tensor, dose: Dose) -> Tensor:
    return _table(_speckles, *dose.constants, device=images.device)[_words(images, dose)] * images


def _speckles(sigma: float) -> Levels:
    """By word: 1 + N(0, σ)."""
    return 1 + np.float32(sigma) * normal_quantiles()


def shot_noise(images: Tensor, dose: Dose) -> Tensor:
    places = (images.to(torch.int32) << WORD_BITS) | _words(images, dose)
    return _table(shot_levels, *dose.constants, device=images.device)[places]


def impulse_noise(images: Tensor, dose: Dose) -> Tensor:
    (amount,) = dose.constants
    words = _words(images, dose)
    salted = torch.where(words < round(amount * NUM_WORDS), 255, images)
    return torch.where(words < round(amount / 2 * NUM_WORDS), 0, salted)


def gaussian_blur(images: Tensor, dose: Dose) -> Tensor:
    (sigma,) = dose.constants
    return smooth(images, sigma)


def defocus_blur(images: Tensor, dose: Dose) -> Tensor:
    radius, alias_sigma = dose.constants
    return filtered(images, disk_kernel(radius, alias_sigma))


def glass_blur(images: Tensor, dose: Dose) -> Tensor:
    sigma, max_delta, passes = dose.constants
    batch, height, width, channels = images.shape
    smoothed_BPC = (smooth(images, sigma) + NUDGE).to(torch.uint8).reshape(batch, height * width, channels)
    sources_BP = glass_sources(batch, height, width, dose=dose, max_delta=int(max_delta), passes=int(passes))
    places_BPC = to_device(sources_BP, images)[..., None].expand(-1, -1, channels)
    return smooth(smoothed_BPC.gather(1, places_BPC).reshape(images.shape), sigma)


def motion_blur(images: Tensor, dose: Dose) -> Tensor:
    radius, sigma = dose.constants
    angles_B = angles(draw_words((len(images),), dose), low=-45, high=45)
    return streaks(images, angles_B, radius=int(radius), sigma=sigma)


def zoom_blur(images: Tensor, dose: Dose) -> Tensor:
    factors = np.arange(*dose.constants).tolist()  # as in zoom_blur_matrix
    clear = images.to(torch.float32)
    total = clear.clone()
    for factor in factors:
        total += zoomed(clear, factor)
    return total / (len(factors) + 1)


def snow(images: Tensor, dose: Dose) -> Tensor:
    _, _, _, _, radius, sigma, keep = dose.constants
    batch, height, width, channels = images.shape
    words = draw_words((batch, 1 + height * width), dose)
    layers = to_device(snow_layers(words[:, 1:].reshape(batch, height, width), dose), images)
    angles_B = angles(words[:, 0], low=-135, high=-45)
    flakes = streaks(layers[..., None], angles_B, radius=int(radius), sigma=sigma)
    clear = images.to(torch.float32)
    white = 1.5 * (_luma(clear) if channels == 3 else clear) + 127.5
    return torch.maximum(white, clear) * (1 - keep) + clear * keep + flakes + flakes.flip(1, 2)


def _luma(images: Tensor) -> Tensor:
    red, green, blue = GREY_WEIGHTS.tolist()
    luma: Tensor = images[..., :1] * red + images[..., 1:2] * green + images[..., 2:] * blue
    return luma


def frost(images: Tensor, dose: Dose) -> Tensor:
    image_weight, frost_weight = dose.constants
    crops = to_device(frost_crops(tuple(images.shape), dose), images)
    return images.to(torch.float32) * image_weight + crops.to(torch.float32) * frost_weight


def fog(images: Tensor, dose: Dose) -> Tensor:
    strength, decay = dose.constants
    layers = haze(tuple(images.shape[:3]), dose, decay=decay)
    brightest = images.amax(dim=(1, 2, 3), keepdim=True).to(torch.float32)
    hazy = images + 255 * strength * to_device(layers, images)[..., None]
    return hazy * (brightest / (brightest + 255 * strength))


def brightness(images: Tensor, dose: Dose) -> Tensor:
    places = (images.amax(dim=3, keepdim=True).to(torch.int32) << 8) | images
    return _table(brighter_levels, *dose.constants, device=images.device)[places]


def saturate(images: Tensor, dose: Dose) -> Tensor:
    if images.shape[3] == 1:
        return images
    _, added = dose.constants
    value, smallest = images.amax(dim=3, keepdim=True), images.amin(dim=3, keepdim=True)
    places = (value.to(torch.int32) << 8) | (value - smallest)
    stretched = _table(stretch, *dose.constants, device=images.device)[places]
    levels = value - (value - images) * stretched
    levels[..., 1:] -= torch.where(value == smallest, value.to(torch.float32) * min(added, 1), 0)
    return levels


def contrast(images: Tensor, dose: Dose) -> Tensor:
    (factor,) = dose.constants
    batch, height, width, channels = images.shape
    # Whole sums are exact, whatever their order.
    sums_BC = images.reshape(batch, -1, channels).sum(dim=1, dtype=torch.int64)
    means_BC = sums_BC.to(torch.float64) / (height * width)
    kept_B11C = means_BC.to(torch.float32)[:, None, None] * (1 - factor)
    return images.to(torch.float32) * factor + kept_B11C


def elastic_transform(images: Tensor, dose: Dose) -> Tensor:
    batch, height, width = images.shape[:3]
    growth = min(height, width) / dose.native_size
    amplitude, sigma, jitter = (growth * c for c in dose.constants)
    drawn = uniforms((batch, 6 + (2 * height * width if amplitude else 0)), dose) * 2 - 1
    points_32 = anchor_points(height, width)
    moved_B32 = points_32 + jitter * drawn[:, :6].reshape(batch, 3, 2)
    inverse_B23 = np.stack([affine_map(moved_32, points_32) for moved_32 in moved_B32])
    turned = _affine(images.to(torch.float32), to_device(inverse_B23, images))
    if not amplitude:
        return turned
    drawn_BHW2 = drawn[:, 6:].reshape(batch, height, width, 2)
    if is_wide(height, width, sigma=sigma):
        shifts_BHW2 = to_device(smooth_shifts(drawn_BHW2, sigma), images)
    else:
        shifts_BHW2 = smooth(to_device(drawn_BHW2, images), sigma, mode="reflect", truncate=3.0)
    shifts_BHW2 = shifts_BHW2 * amplitude
    rows_H1, columns_W = _grid(images, torch.float32)
    rows, columns = rows_H1 + shifts_BHW2[..., 1], columns_W + shifts_BHW2[..., 0]
    return bilinear(turned, rows, columns, mode="reflect")


def _affine(images: Tensor, inverse_B23: Tensor) -> Tensor:
    """Each position (x, y) takes the colour at its matrix times (x, y, 1)."""
    rows_H1, columns_W = _grid(images, torch.float64)
    columns, rows = (
        m_B3[:, 0, None, None] * columns_W + m_B3[:, 1, None, None] * rows_H1 + m_B3[:, 2, None, None]
        for m_B3 in inverse_B23.unbind(1)
    )
    return bilinear(images, rows, columns, mode="mirror")


def _grid(images: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The images' row numbers [H, 1] and column numbers [W]."""
    rows_H, columns_W = (torch.arange(n, dtype=dtype, device=images.device) for n in images.shape[1:3])
    return rows_H[:, None], columns_W


_APPLY: dict[str, Callable[[Tensor, Dose], Tensor]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "speckle_noise": speckle_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "gaussian_blur": gaussian_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "saturate": saturate,
    "elastic_transform": elastic_transform,
}
# Published names of those whose pixels never leave the device.
ON_DEVICE = frozenset(_APPLY)

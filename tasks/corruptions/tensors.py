"""Images on a GPU, a corruption and a severity in, corrupted images on the same GPU out.

The draws are those of `corrupt`: made on the CPU from each image's own key, and copied as words, which is little
against the pixels' arithmetic. So the result is that of `corrupt` within a grey level. Spatter (edges, distances),
pixelate and JPEG are no tensor work: they go through `corrupt` and back.
"""

# B images in a batch, H W C pixels, P = H·W pixel positions

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.corruptions import CORRUPTIONS, checked_ids, corrupt, dose_for, resolve
from tasks.corruptions.blur import (
    angles,
    disk_kernel,
    glass_sources,
    zoom_blur_matrix,
)
from tasks.corruptions.digital import affine_map, anchor_points
from tasks.corruptions.draws import WORD_BITS, draw_words, normal_quantiles, uniforms
from tasks.corruptions.image_property import brighter_levels, stretch
from tasks.corruptions.noise import shot_levels, whole_levels
from tasks.corruptions.severity import NUDGE, Dose
from tasks.corruptions.tensor_filters import bilinear, framed, smooth, streaks, to_device
from tasks.corruptions.weather import GREY_WEIGHTS, frost_crops, next_power_of_two, plasma, snow_layers
from tasks.errors import DataError
from tasks.records import Ints

# Values worked on at once: a step's arrays must fit the device beside a model.
CHUNK_VALUES = 2**24


def corrupt_tensor(
    images: Tensor,
    *,
    image_ids_B: Tensor | Ints | Sequence[int],
    corruption: str,
    severity: int,
    seed: int,
    table: str = "cifar",
) -> Tensor:
    """`corrupt` for a uint8 tensor [B, H, W, 3], [B, H, W, 1] or [B, H, W] on any device; the result is there, too.

    Within one grey level of `corrupt`, whose arguments and errors these are.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise DataError(
            f"images are {kind}; corrupt_tensor takes uint8 tensors [B, H, W, 3] with values 0..255"
        )
    given = image_ids_B.cpu().numpy() if isinstance(image_ids_B, Tensor) else image_ids_B
    name = resolve(corruption)
    options = {"corruption": name, "severity": severity, "seed": seed, "table": table}
    dose_for([], **options)  # type: ignore[arg-type]  # settings first: no images yet
    # A stand-in of the same shape that takes no memory: the checks are those of the CPU.
    ids = checked_ids(np.broadcast_to(np.uint8(0), tuple(images.shape)), given)
    if name not in ON_DEVICE:
        there = corrupt(images.cpu().numpy(), image_ids_B=given, **options)  # type: ignore[arg-type]
        return torch.from_numpy(there).to(images.device)
    images_BHWC = images if images.ndim == 4 else images[..., None]
    corrupted_BHWC = torch.empty_like(images_BHWC, memory_format=torch.contiguous_format)
    chunk = max(1, CHUNK_VALUES // max(1, math.prod(images_BHWC.shape[1:])))
    with torch.backends.cudnn.flags(allow_tf32=False), torch.no_grad():
        for start in range(0, len(ids), chunk):
            rows = slice(start, start + chunk)
            dose = dose_for(ids[rows], **options)  # type: ignore[arg-type]
            levels_BHWC = ON_DEVICE[name](images_BHWC[rows].contiguous(), dose)
            if levels_BHWC.dtype != torch.uint8:
                levels_BHWC = (levels_BHWC + NUDGE).clamp(0, 255).to(torch.uint8)
            corrupted_BHWC[rows] = levels_BHWC
    return corrupted_BHWC.reshape(images.shape)


def _words(images: Tensor, dose: Dose) -> Tensor:
    return to_device(draw_words(tuple(images.shape), dose), images)


def gaussian_noise(images: Tensor, dose: Dose) -> Tensor:
    (sigma,) = dose.constants
    noise = to_device(whole_levels(sigma), images)[_words(images, dose)]
    return (noise + images).clamp(0, 255).to(torch.uint8)


def speckle_noise(images: Tensor, dose: Dose) -> Tensor:
    (sigma,) = dose.constants
    return to_device(1 + np.float32(sigma) * normal_quantiles(), images)[_words(images, dose)] * images


def shot_noise(images: Tensor, dose: Dose) -> Tensor:
    (photons,) = dose.constants
    places = (images.to(torch.int32) << WORD_BITS) | _words(images, dose)
    return to_device(shot_levels(photons), images)[places]


def impulse_noise(images: Tensor, dose: Dose) -> Tensor:
    (amount,) = dose.constants
    words = _words(images, dose)
    salted = torch.where(words < round(amount * 2**WORD_BITS), 255, images)
    return torch.where(words < round(amount / 2 * 2**WORD_BITS), 0, salted).to(torch.uint8)


def gaussian_blur(images: Tensor, dose: Dose) -> Tensor:
    (sigma,) = dose.constants
    return smooth(images, sigma)


def defocus_blur(images: Tensor, dose: Dose) -> Tensor:
    kernel = to_device(disk_kernel(*dose.constants), images)
    padded = framed(images, len(kernel) // 2, "mirror")
    return (
        F.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None])
        .reshape(len(images), -1, *images.shape[1:3])
        .permute(0, 2, 3, 1)
    )


def glass_blur(images: Tensor, dose: Dose) -> Tensor:
    sigma, max_delta, passes = dose.constants
    batch, height, width, channels = images.shape
    smoothed = smooth(images, sigma).to(torch.uint8).reshape(batch, height * width, channels)
    sources_BP = glass_sources(batch, height, width, dose=dose, max_delta=int(max_delta), passes=int(passes))
    places = to_device(sources_BP, images)[..., None].expand(-1, -1, channels)
    return smooth(smoothed.gather(1, places).reshape(images.shape), sigma)


def motion_blur(images: Tensor, dose: Dose) -> Tensor:
    radius, sigma = dose.constants
    angles_B = angles(draw_words((len(images),), dose), low=-45, high=45)
    return streaks(images, angles_B, radius=int(radius), sigma=sigma)


def zoom_blur(images: Tensor, dose: Dose) -> Tensor:
    start, stop, step = dose.constants
    batch, height, width, channels = images.shape
    matrix = zoom_blur_matrix(height, width, start=start, stop=stop, step=step).tocoo()
    places = torch.from_numpy(np.stack([matrix.row, matrix.col]).astype(np.int64))
    matrix_PP = torch.sparse_coo_tensor(
        places, torch.from_numpy(matrix.data), matrix.shape, device=images.device, check_invariants=True
    )
    columns = (
        images.reshape(batch, -1, channels).transpose(0, 1).reshape(height * width, -1).to(torch.float32)
    )
    blurred: Tensor = torch.sparse.mm(matrix_PP, columns)
    return blurred.reshape(height * width, batch, channels).transpose(0, 1).reshape(images.shape)


def brightness(images: Tensor, dose: Dose) -> Tensor:
    (added,) = dose.constants
    places = (images.amax(dim=3, keepdim=True).to(torch.int32) << 8) | images
    return to_device(brighter_levels(added), images)[places]


def saturate(images: Tensor, dose: Dose) -> Tensor:
    if images.shape[3] == 1:
        return images
    factor, added = dose.constants
    value, smallest = images.amax(dim=3, keepdim=True), images.amin(dim=3, keepdim=True)
    places = (value.to(torch.int32) << 8) | (value - smallest)
    distance = (value - images) * to_device(stretch(factor, added), images)[places]
    red = torch.tensor([0.0, 1.0, 1.0], device=images.device) * min(added, 1)
    levels: Tensor = value - distance - torch.where(value == smallest, value * red, 0)
    return levels


def contrast(images: Tensor, dose: Dose) -> Tensor:
    (factor,) = dose.constants
    means = images.to(torch.float64).mean(dim=(1, 2), keepdim=True)
    return images * factor + (means * (1 - factor)).to(torch.float32)


def fog(images: Tensor, dose: Dose) -> Tensor:
    strength, decay = dose.constants
    batch, height, width = images.shape[:3]
    haze = plasma(batch, dose, size=next_power_of_two(max(height, width)), decay=decay)[:, :height, :width]
    brightest = images.amax(dim=(1, 2, 3), keepdim=True).to(torch.float32)
    hazy = images + 255 * strength * to_device(haze, images)[..., None]
    return hazy * (brightest / (brightest + 255 * strength))


def frost(images: Tensor, dose: Dose) -> Tensor:
    image_weight, frost_weight = dose.constants
    return images * image_weight + to_device(frost_crops(tuple(images.shape), dose), images) * frost_weight


def snow(images: Tensor, dose: Dose) -> Tensor:
    _, _, _, _, radius, sigma, keep = dose.constants
    batch, height, width, channels = images.shape
    words = draw_words((batch, 1 + height * width), dose)
    layers = to_device(snow_layers(words[:, 1:].reshape(batch, height, width), dose), images)
    angles_B = angles(words[:, 0], low=-135, high=-45)
    flakes = streaks(layers[..., None], angles_B, radius=int(radius), sigma=sigma)
    weights = to_device(GREY_WEIGHTS if channels == 3 else np.ones(1, np.float32), images)
    white = 1.5 * (images * weights).sum(dim=3, keepdim=True) + 127.5
    return torch.maximum(white, images) * (1 - keep) + images * keep + flakes + flakes.flip(1, 2)


def elastic_transform(images: Tensor, dose: Dose) -> Tensor:
    batch, height, width = images.shape[:3]
    growth = min(height, width) / dose.native_size
    amplitude, sigma, jitter = (growth * c for c in dose.constants)
    drawn = uniforms((batch, 6 + (2 * height * width if amplitude else 0)), dose) * 2 - 1
    points_32 = anchor_points(height, width)
    moved_B32 = points_32 + jitter * drawn[:, :6].reshape(batch, 3, 2)
    inverse_B23 = to_device(np.stack([affine_map(moved_32, points_32) for moved_32 in moved_B32]), images)
    grid = torch.meshgrid(
        *(torch.arange(size, device=images.device) for size in (height, width)), indexing="ij"
    )
    rows, columns = (axis.to(torch.float64) for axis in grid)
    x, y = (
        m[:, 0, None, None] * columns + m[:, 1, None, None] * rows + m[:, 2, None, None]
        for m in inverse_B23.unbind(1)
    )
    turned = bilinear(images.to(torch.float32), y, x, mode="mirror")
    if not amplitude:
        return turned
    shifts = smooth(
        to_device(drawn[:, 6:].reshape(batch, height, width, 2), images), sigma, mode="reflect", truncate=3.0
    )
    shifts = shifts * amplitude
    return bilinear(turned, rows + shifts[..., 1], columns + shifts[..., 0], mode="reflect")


_DONE: tuple[Callable[[Tensor, Dose], Tensor], ...] = (
    gaussian_noise,
    shot_noise,
    impulse_noise,
    speckle_noise,
    defocus_blur,
    glass_blur,
    motion_blur,
    zoom_blur,
    gaussian_blur,
    snow,
    frost,
    fog,
    brightness,
    contrast,
    saturate,
    elastic_transform,
)
# By published name: those whose pixels stay on the device.
ON_DEVICE = {apply.__name__: apply for apply in _DONE}
assert set(ON_DEVICE) < set(CORRUPTIONS)

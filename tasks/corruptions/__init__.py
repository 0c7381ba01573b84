"""Images, their ids, a corruption, a severity and a seed in; corrupted images out.

An image's corruption is a pure function of (seed, image_id, corruption, severity) and its pixels: its
randomness is drawn from a generator of its own, and the arithmetic that is shared by a batch never mixes
images. So batches, order, processes and restarts do not show in a single byte.

    noise            gaussian_noise GN, shot_noise SN, impulse_noise IN, speckle_noise SKN
    blur             defocus_blur DB, glass_blur GB, motion_blur MB, zoom_blur ZM, gaussian_blur GAB
    weather          snow SW, frost FR, fog FOG, spatter SP
    image_property   brightness BR, contrast CT, saturate SA
    digital          elastic_transform ET, pixelate PIX, jpeg_compression JPEG

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019; short names and categories as in the paper that MetaRepair reproduces.
"""

# B images in a batch, H W C pixels

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tasks.corruptions import blur, digital, image_property, noise, weather
from tasks.corruptions.severity import Dose, Levels, constants_at, load_table, severity_table
from tasks.errors import ConfigError, DataError, unknown_name
from tasks.keys import keyed_generator
from tasks.records import Ints, Pixels

__all__ = ["CORRUPTIONS", "Category", "Corruption", "category_of", "corrupt", "resolve", "severity_table"]

Category = Literal["noise", "blur", "weather", "image_property", "digital"]
Apply = Callable[[Pixels, Dose], Pixels | Levels]

MIN_SIZE = 8
# Values worked on at once, so that a step's arrays stay in the processor's cache; shows in no result.
CHUNK_VALUES = 2**18


@dataclass(frozen=True)
class Corruption:
    """One corruption: its published name, the paper's short name and category, and what it does.

    `apply` takes uint8 images and a `Dose`; it returns grey levels 0..255 that `corrupt` clips and
    truncates.
    """

    name: str
    short: str
    category: Category
    apply: Apply


CORRUPTIONS: dict[str, Corruption] = {
    c.name: c
    for c in (
        Corruption("gaussian_noise", "GN", "noise", noise.gaussian_noise),
        Corruption("shot_noise", "SN", "noise", noise.shot_noise),
        Corruption("impulse_noise", "IN", "noise", noise.impulse_noise),
        Corruption("speckle_noise", "SKN", "noise", noise.speckle_noise),
        Corruption("defocus_blur", "DB", "blur", blur.defocus_blur),
        Corruption("glass_blur", "GB", "blur", blur.glass_blur),
        Corruption("motion_blur", "MB", "blur", blur.motion_blur),
        Corruption("zoom_blur", "ZM", "blur", blur.zoom_blur),
        Corruption("gaussian_blur", "GAB", "blur", blur.gaussian_blur),
        Corruption("snow", "SW", "weather", weather.snow),
        Corruption("frost", "FR", "weather", weather.frost),
        Corruption("fog", "FOG", "weather", weather.fog),
        Corruption("spatter", "SP", "weather", weather.spatter),
        Corruption("brightness", "BR", "image_property", image_property.brightness),
        Corruption("contrast", "CT", "image_property", image_property.contrast),
        Corruption("saturate", "SA", "image_property", image_property.saturate),
        Corruption("elastic_transform", "ET", "digital", digital.elastic_transform),
        Corruption("pixelate", "PIX", "digital", digital.pixelate),
        Corruption("jpeg_compression", "JPEG", "digital", digital.jpeg_compression),
    )
}

_BY_LOWER_NAME = {key.lower(): c for c in CORRUPTIONS.values() for key in (c.name, c.short)}


def resolve(name: str) -> str:
    """The published name for a published or short name, in any case; unknown is a ConfigError."""
    found = _BY_LOWER_NAME.get(name.lower())
    if found is None:
        raise ConfigError(unknown_name("corruption", name, CORRUPTIONS))
    return found.name


def category_of(name: str) -> Category:
    """The paper's category of a corruption, by either name."""
    return CORRUPTIONS[resolve(name)].category


def corrupt(
    images_BHWC_u8: Pixels,
    *,
    image_ids_B: Ints | Sequence[int],
    corruption: str,
    severity: int,
    seed: int,
    table: str = "cifar",
) -> Pixels:
    """Corrupted copies of the images; equal ids, pixels and settings give equal bytes anywhere."""
    chosen = CORRUPTIONS[resolve(corruption)]
    constants = constants_at(table, corruption=chosen.name, severity=severity)
    made_for = load_table(table)
    ids = _checked_ids(images_BHWC_u8, image_ids_B)
    corrupted = np.empty(images_BHWC_u8.shape, np.uint8)
    chunk = max(1, CHUNK_VALUES // max(1, int(np.prod(images_BHWC_u8.shape[1:]))))
    for start in range(0, len(ids), chunk):
        rows = slice(start, start + chunk)
        dose = Dose(
            constants=constants,
            native_size=made_for.native_size,
            frost_scale=made_for.frost_scale,
            rngs=(keyed_generator("corrupt", seed, i, chosen.name, int(severity)) for i in ids[rows]),
        )
        corrupted[rows] = _truncate(chosen.apply(np.ascontiguousarray(images_BHWC_u8[rows]), dose))
    return corrupted


def _truncate(levels: Pixels | Levels) -> Pixels:
    """Clip to 0..255 and cut the fraction off."""
    if levels.dtype == np.uint8:
        return np.asarray(levels, np.uint8)
    # A thousandth of a level: float32 must not round a whole level below itself before the cut.
    truncated: Pixels = np.clip(levels + np.float32(2**-10), 0, 255).astype(np.uint8)
    return truncated


def _checked_ids(images: Pixels, image_ids: Ints | Sequence[int]) -> list[int]:
    """The ids as plain integers, after all that can be wrong with images and ids has been ruled out."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = getattr(images, "dtype", type(images).__name__)
        raise DataError(f"images are {kind}; corruptions take uint8 arrays [B, H, W, 3] with values 0..255")
    if images.ndim != 4 or images.shape[3] != 3:
        raise DataError(f"images have shape {list(images.shape)}; corruptions take [B, H, W, 3]")
    if len(images) and min(images.shape[1:3]) < MIN_SIZE:
        raise DataError(
            f"images are {images.shape[1]}x{images.shape[2]}; at least {MIN_SIZE}x{MIN_SIZE} is needed"
        )
    ids = np.asarray(image_ids)
    if ids.shape != images.shape[:1]:
        raise DataError(
            f"image ids have shape {list(ids.shape)} for {len(images)} images; give one id per image"
        )
    if len(ids) and not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f"image ids are {ids.dtype}; give integers")
    return [int(i) for i in ids]

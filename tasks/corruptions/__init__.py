"""Corrupt images with the 19 published corruptions, or with those of other packages, at severities 1 to 5.

A corrupted image is a pure function of (seed, image_id, corruption, severity) and the clean pixels: each image has
its own random generator, and the arithmetic that a batch shares never mixes images. So batches, order, processes
and restarts do not change a single byte.

    noise            gaussian_noise GN, shot_noise SN, impulse_noise IN, speckle_noise SKN
    blur             defocus_blur DB, glass_blur GB, motion_blur MB, zoom_blur ZM, gaussian_blur GAB
    weather          snow SW, frost FR, fog FOG, spatter SP
    image_property   brightness BR, contrast CT, saturate SA
    digital          elastic_transform ET, pixelate PIX, jpeg_compression JPEG

Other packages add corruptions by an entry point (`tasks.corruptions.plugins`).

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019; short names and categories as in the paper that MetaRepair reproduces.
"""

# B images in a batch, H W C pixels

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np

from tasks.corruptions.plugins import CorruptionPlugin, InstalledPlugin, find_plugin, plugin_names
from tasks.corruptions.published import BY_LOWER_NAME, CORRUPTIONS, Category, Corruption
from tasks.corruptions.severity import NUDGE, Dose, Levels, load_table, severity_table
from tasks.corruptions.shapes import channels_first_note, check_shape
from tasks.errors import ConfigError, DataError, unknown_name
from tasks.keys import iter_keyed_generators
from tasks.records import Ints, Pixels

__all__ = [
    "CORRUPTIONS",
    "Category",
    "Corruption",
    "CorruptionPlugin",
    "Dose",
    "category_of",
    "corrupt",
    "resolve",
    "severity_table",
]

# Values processed at once, so that the arrays of a step stay in the processor's cache. Results do not depend on it.
CHUNK_VALUES = 2**18


def resolve(name: str) -> str:
    """Find the full name of a corruption.

    Args:
        name: a published or short name, or the name of a plugin, in upper or lower case.

    Returns:
        The published name, a key of `CORRUPTIONS`, or the plugin's name.

    Raises:
        ConfigError: there is no such corruption (the message suggests similar names), or its plugin is broken.

    Example:
        >>> resolve("GN")
        'gaussian_noise'
    """
    return _find(name).name


def category_of(name: str) -> str:
    """Find the category of a corruption.

    Args:
        name: a published or short name, or the name of a plugin, in upper or lower case.

    Returns:
        noise, blur, weather, image_property or digital, as in the paper; a plugin may have a word of its own.

    Raises:
        ConfigError: there is no such corruption, or its plugin is broken.

    Example:
        >>> category_of("fog")
        'weather'
    """
    return _find(name).category


def _find(name: str) -> Corruption | InstalledPlugin:
    """The corruption of this name. Plugins are looked up only if no published corruption has it."""
    found = BY_LOWER_NAME.get(str(name).lower()) or find_plugin(str(name).lower())
    if found is None:
        raise ConfigError(unknown_name("corruption", str(name), (*CORRUPTIONS, *plugin_names())))
    return found


def corrupt(
    images: Pixels,
    *,
    image_ids_B: Ints | Sequence[int],
    corruption: str,
    severity: int,
    seed: int,
    table: str = "cifar",
) -> Pixels:
    """Corrupt copies of the images.

    Equal ids, pixels and settings give equal bytes in any batch, order and process. Only other versions of NumPy, SciPy
    or OpenCV may give other bytes.

    Args:
        images: uint8 [B, H, W, 3] (RGB), [B, H, W, 1] or [B, H, W] (grey), with H and W at least 8 px, in any memory
            layout. They are not changed.
        image_ids_B: B integers, one per image. An image's random numbers depend on its id, not on its row.
        corruption: a published or short name, or the name of a plugin, in upper or lower case.
        severity: 1 to 5.
        seed: an integer, the same for all images.
        table: the table of constants, named after the images that it was made for: cifar (32 px), tinyimagenet (64 px)
            or imagenet (224 px).

    Returns:
        Corrupted images, uint8, of the same shape.

    Raises:
        ConfigError: the corruption, severity, seed or table is unknown or out of range, or a plugin is broken.
        DataError: the images or ids have another type or shape, or the images are too small or too large.

    Example:
        >>> import numpy as np
        >>> images = np.full((2, 32, 32, 3), 128, np.uint8)
        >>> foggy = corrupt(images, image_ids_B=[7, 8], corruption="fog", severity=3, seed=0)
        >>> foggy.shape, foggy.dtype
        ((2, 32, 32, 3), dtype('uint8'))
        >>> alone = corrupt(images[1:], image_ids_B=[8], corruption="fog", severity=3, seed=0)
        >>> bool((alone[0] == foggy[1]).all())
        True

    Source: Hendrycks & Dietterich, ICLR 2019; docs/corruptions.md lists the differences.
    """
    chosen = _find(corruption)
    dose_for(
        [], corruption=chosen.name, severity=severity, seed=seed, table=table
    )  # no ids: checks the settings before the images
    ids = checked_ids(images, image_ids_B)
    images_BHWC = images if images.ndim == 4 else images[..., None]
    corrupted_BHWC = np.empty(images_BHWC.shape, np.uint8)
    chunk = max(1, CHUNK_VALUES // max(1, math.prod(images_BHWC.shape[1:])))
    for start in range(0, len(ids), chunk):
        rows = slice(start, start + chunk)
        dose = dose_for(ids[rows], corruption=chosen.name, severity=severity, seed=seed, table=table)
        corrupted_BHWC[rows] = _truncate(chosen.apply(np.ascontiguousarray(images_BHWC[rows]), dose))
    return corrupted_BHWC.reshape(images.shape)


def dose_for(ids: Sequence[int], *, corruption: str, severity: int, seed: int, table: str) -> Dose:
    """The `Dose` of a corruption for the images with these ids. Raises ConfigError."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise ConfigError(f"seed={seed!r} is not an integer; give one")
    made_for, chosen = load_table(table), _find(corruption)
    return Dose(
        constants=chosen.constants_at(table, severity=severity),
        native_size=made_for.native_size,
        frost_scale=made_for.frost_scale,
        rngs=iter_keyed_generators("corrupt", seed, chosen.name, int(severity), last=ids),
    )


def _truncate(levels: Pixels | Levels) -> Pixels:
    """Clip to 0..255 and drop the fraction; overwrites `levels`."""
    if levels.dtype == np.uint8:
        return np.asarray(levels, np.uint8)
    levels += np.float32(NUDGE)
    return np.clip(levels, 0, 255, out=levels).astype(np.uint8)


def checked_ids(images: Pixels, image_ids: Ints | Sequence[int]) -> list[int]:
    """Check the images and ids; return the ids as plain integers. Raises DataError."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise DataError(_not_uint8(images))
    if isinstance(images, np.ma.MaskedArray):
        raise DataError(
            "images are a masked array, which corruptions do not support; images.filled(0) fills it"
        )
    check_shape(images.shape)
    # dtype=object, since NumPy would turn integers beyond 64 bits into floats.
    ids = image_ids if isinstance(image_ids, np.ndarray) else np.array(image_ids, dtype=object)
    if ids.shape != images.shape[:1]:
        raise DataError(
            f"image ids have shape {list(ids.shape)} for {len(images)} images; give a list of one id per image"
            f"{channels_first_note(images.shape)}"
        )
    if len(ids) and ids.dtype != object and not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f"image ids are {ids.dtype}; give integers")
    return [_whole(i) for i in ids]


def _whole(image_id: object) -> int:
    try:
        if not isinstance(image_id, bool):
            return operator.index(image_id)  # type: ignore[arg-type]  # it refuses anything but integers
    except TypeError:
        pass
    raise DataError(
        f"the image id {image_id!r} is not an integer but {type(image_id).__name__}; give integers"
    )


def _not_uint8(images: object) -> str:
    if not isinstance(images, np.ndarray):
        remedy = (
            "numpy.stack(images) makes one from images of equal size"
            if isinstance(images, list | tuple)
            else "images.numpy(force=True) makes one from a torch tensor"
        )
        return (
            f"images are {type(images).__name__}; corruptions take uint8 arrays [B, H, W, 3] with values 0..255. "
            f"{remedy}"
        )
    text = f"images are {images.dtype}; corruptions take uint8 arrays [B, H, W, 3] with values 0..255"
    if not np.issubdtype(images.dtype, np.number) or not images.size:
        return text
    strange = np.count_nonzero(~np.isfinite(images))
    if strange:
        return f"{text}, and {strange} of these values are NaN or infinite. Find out why, then convert"
    if np.issubdtype(images.dtype, np.floating):
        return f"{text}. Convert from 0..1 with (255 * images).round().astype(numpy.uint8)"
    return f"{text}. Convert from 0..255 with images.astype(numpy.uint8)"

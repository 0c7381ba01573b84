"""Reads labelled images from arrays, tensors, data sets, pairs and paths into one array [N, H, W, C] with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from metarepair.data.given_labels import collect_labels
from metarepair.data.image_files import read_images
from tasks.datasets.images import UnreadableImageError, opened_pixels
from tasks.errors import DataError
from tasks.records import Ints
from tasks.splits.parts import group_numbers

# N images, H W pixels, C channels


@dataclass(frozen=True, kw_only=True)
class GivenImages:
    """Labelled images: uint8 pixels, or floats that are already the DNN's input.

    image_ids_N: images with one id, such as those of one group, are learned from together or not at all. notes:
    sentences about files that were not read.
    """

    name: str
    images_NHWC: np.ndarray
    labels_N: Ints
    image_ids_N: Ints
    notes: tuple[str, ...] = ()

    def images(self, rows: Ints) -> np.ndarray:
        return self.images_NHWC[rows]

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def channels(self) -> int:
        return int(self.images_NHWC.shape[3])

    @property
    def prepared(self) -> bool:
        """Whether the images are floats, which the caller has normalised."""
        return self.images_NHWC.dtype != np.uint8


def collect_images(
    given: Any,
    *,
    name: str,
    channels: int = 3,
    classes: tuple[str, ...] | None = None,
    image_size: int | None = None,
) -> GivenImages:
    """Read labelled images into memory.

    given: (images, labels), one of this project's splits or Failures, a sequence of (image, label) pairs, or the path
    of a folder or table: its labels name `classes`, and its images are resized to `image_size`, if that is given. An
    image is a PIL image, uint8 [H, W, C] or [C, H, W], or a float tensor [C, H, W] as the DNN takes it. PIL images are
    converted like those of a data set: rotated by their EXIF tag, 16-bit grey to 8 bits by its whole range, and all to
    RGB. Grey images stay grey only if `channels`, the number that the DNN takes, is 1. Raises DataError for anything
    else, ConfigError for a path without `classes`.
    """
    if isinstance(given, str | Path):
        return _from_path(given, name, channels, classes, image_size)
    ids: Ints | None = None
    if hasattr(given, "labels_N"):  # this project's own records and data sets
        pixels = given.images_NHWC[:] if hasattr(given, "images_NHWC") else given.images(slice(None))
        labels, ids = given.labels_N, given.image_ids_N
    elif isinstance(given, tuple) and len(given) == 2 and getattr(given[0], "ndim", 0) >= 3:
        pixels, labels = given
    else:
        pixels, labels = None, None
    images_NHWC, labels = (
        _from_pairs(given, name, channels)
        if pixels is None
        else (_channels_last(_array(pixels, name), name), labels)
    )
    labels_N = collect_labels(labels, name=name)
    if len(images_NHWC) != len(labels_N):
        raise DataError(f"{name}: {len(images_NHWC)} images but {len(labels_N)} labels; give one for each.")
    if not len(labels_N):
        raise DataError(f"{name}: there are no images. Give at least one image with its correct label.")
    _check_pixels(images_NHWC, name)
    return GivenImages(
        name=name,
        images_NHWC=images_NHWC,
        labels_N=labels_N,
        image_ids_N=np.arange(len(labels_N)) if ids is None else np.asarray(ids),
    )


def _from_path(
    given: str | Path, name: str, channels: int, classes: tuple[str, ...] | None, image_size: int | None
) -> GivenImages:
    images_NHWC, listing = read_images(given, name=name, classes=classes, image_size=image_size)
    groups_N = group_numbers(listing.groups or ())
    return GivenImages(
        name=name,
        images_NHWC=_grey(images_NHWC, f"{listing.name} has colour images") if channels == 1 else images_NHWC,
        labels_N=listing.labels_N,
        image_ids_N=np.arange(len(listing.labels_N)) if groups_N is None else groups_N,
        notes=listing.passed_over,
    )


def _from_pairs(given: Any, name: str, channels: int) -> tuple[np.ndarray, list[Any]]:
    if isinstance(given, Mapping) or not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
        raise DataError(
            f"{name}: {type(given).__name__} is neither (images, labels) nor a sequence of (image, label) pairs. "
            "Give uint8 images [N, H, W, C] with labels [N], or a data set with len() and [i]."
        )
    images: list[np.ndarray] = []
    labels = []
    for i in range(len(given)):
        item = f"{name}: item {i}"
        try:
            pair = given[i]
        except Exception as error:  # the code of a caller's data set
            raise DataError(
                f"{item} cannot be read: {type(given).__name__} raised {type(error).__name__}: {error}. Correct the "
                "data set, or leave this item out."
            ) from error
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise DataError(f"{item} is {type(pair).__name__}, not a pair (image, label).")
        image, label = pair
        pixels = _pil_pixels(image, item, channels) if isinstance(image, Image.Image) else image
        images.append(_channels_last(_array(pixels, item)[None], item)[0])
        labels.append(label)
        _check_like_first(images, i, name)
    return (np.stack(images) if images else np.zeros((0, 1, 1, 3), np.uint8)), labels


def _pil_pixels(image: Image.Image, item: str, channels: int) -> np.ndarray:
    """Pixels [H, W, 3], or [H, W, 1] of a grey image for a DNN with one channel."""
    try:
        rgb_HWC = opened_pixels(image)
    except UnreadableImageError as error:
        raise DataError(f"{item} cannot be used: {error}.") from error
    return _grey(rgb_HWC, f"{item} is a colour image (mode {image.mode})") if channels == 1 else rgb_HWC


def _grey(rgb: np.ndarray, problem: str) -> np.ndarray:
    """The one channel [..., 1] of grey images in RGB. Raises DataError, which begins with `problem`, for colour."""
    if (rgb != rgb[..., :1]).any():
        raise DataError(
            f"{problem}, but mean and std have one channel. Convert to grey first, as in the DNN's training, or give "
            "mean and std of three channels for a DNN that takes three."
        )
    return rgb[..., :1]


def _check_like_first(images: list[np.ndarray], i: int, name: str) -> None:
    """Raise DataError if image `i`, the last one, has another dtype or shape than the first."""
    first, last = images[0], images[-1]
    if last.dtype != first.dtype:
        raise DataError(
            f"{name}: item {i} is {last.dtype} and item 0 is {first.dtype}. Give all as uint8 pixels, or all as floats "
            "that are normalised as the DNN takes them."
        )
    if last.shape != first.shape:
        raise DataError(
            f"{name}: the images have different sizes (item 0 is {_shape(first)}, item {i} is {_shape(last)}). Give "
            "all in the same size, with the same number of channels."
        )


def _shape(image_HWC: np.ndarray) -> str:
    height, width, channels = image_HWC.shape
    return f"{height}×{width} with {channels} channel{'s' if channels > 1 else ''}"


def _array(image: Any, name: str) -> np.ndarray:
    """The values of an array or a tensor as an array."""
    if isinstance(image, torch.Tensor):
        try:
            # NumPy has no bfloat16.
            image = (image.float() if image.is_floating_point() else image).numpy(force=True)
        except (RuntimeError, TypeError) as error:  # sparse, quantised, or without data
            raise DataError(
                f"{name}: a tensor of {image.dtype} and {image.layout} on {image.device} cannot be read as an array "
                f"({' '.join(str(error).split())[:120]}). Give a dense tensor."
            ) from error
    if isinstance(image, np.ma.MaskedArray):
        raise DataError(f"{name}: images are a masked array. Give a plain array: images.filled(0) makes one.")
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"{name}: an image is {type(image).__name__}; it must be a PIL image, an array or a tensor."
        )
    return image


def _channels_last(images: np.ndarray, name: str) -> np.ndarray:
    """Images [N, H, W], [N, H, W, C] or [N, C, H, W] as [N, H, W, C]: uint8, or float32 for floats of any width.

    uint8 images have their channels last if the last axis is 1 or 3, as images do; floats have them first, as tensors
    do.
    """
    floats = np.issubdtype(images.dtype, np.floating)
    if images.dtype != np.uint8 and not floats:
        raise DataError(
            f"{name}: images are {images.dtype}; give uint8 pixels, or floats that are normalised as the DNN takes "
            "them."
        )
    if images.ndim == 3 and not floats:
        images = images[..., None]
    if images.ndim != 4:
        raise DataError(
            f"{name}: images have the shape {list(images.shape)}; give uint8 [N, H, W, C], or floats [N, C, H, W]."
        )
    if floats or (images.shape[-1] not in (1, 3) and images.shape[1] in (1, 3)):
        images = images.transpose(0, 2, 3, 1)
    with np.errstate(over="ignore"):  # beyond float32: infinity, which _check_pixels refuses
        return np.ascontiguousarray(images, dtype=np.float32 if floats else np.uint8)


def _check_pixels(images_NHWC: np.ndarray, name: str) -> None:
    """Raise DataError if the images have no pixels, or contain NaN or infinity."""
    if 0 in images_NHWC.shape:
        raise DataError(f"{name}: images have the shape {list(images_NHWC.shape)}; give images with pixels.")
    if images_NHWC.dtype == np.uint8:
        return
    for i, image_HWC in enumerate(images_NHWC):
        if not np.isfinite(image_HWC).all():
            raise DataError(f"{name}: image {i} has NaN or infinity among its values. Leave it out.")

"""Whatever holds labelled images in: arrays, tensors, a data set of pairs; one array [N, H, W, C] and labels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from tasks.errors import DataError
from tasks.records import Ints

# N images, H W pixels, C channels


@dataclass(frozen=True, kw_only=True)
class GivenImages:
    """Labelled images: uint8 pixels, or floats that are the DNN's own input already."""

    name: str
    images_NHWC: np.ndarray
    labels_N: Ints
    image_ids_N: Ints

    def images(self, rows: Ints) -> np.ndarray:
        return self.images_NHWC[rows]

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def prepared(self) -> bool:
        """Floats: normalised by whoever made them."""
        return self.images_NHWC.dtype != np.uint8


def collect_images(given: Any, *, name: str) -> GivenImages:
    """(images, labels), a split or Failures of the project's, or any sequence of (image, label), in memory.

    An image is a PIL image, uint8 [H, W, C] or [C, H, W], or a float tensor [C, H, W] as the DNN takes it. Raises
    DataError that says what came.
    """
    ids: Ints | None = None
    if hasattr(given, "labels_N"):  # of the project's own records and data sets
        pixels = given.images_NHWC_u8[:] if hasattr(given, "images_NHWC_u8") else given.images(slice(None))
        labels, ids = given.labels_N, given.image_ids_N
    elif isinstance(given, tuple) and len(given) == 2 and getattr(given[0], "ndim", 0) >= 3:
        pixels, labels = given
    else:
        pixels, labels = None, None
    images_NHWC, labels = (
        _from_pairs(given, name) if pixels is None else (_channels_last(pixels, name), labels)
    )
    labels_N = _labels(labels, name)
    if len(images_NHWC) != len(labels_N):
        raise DataError(f"{name}: {len(images_NHWC)} images but {len(labels_N)} labels; give one for each.")
    if not len(labels_N):
        raise DataError(f"{name}: no images came. Give some failing images with their right labels.")
    return GivenImages(
        name=name,
        images_NHWC=images_NHWC,
        labels_N=labels_N,
        image_ids_N=np.arange(len(labels_N)) if ids is None else np.asarray(ids),
    )


def _from_pairs(given: Any, name: str) -> tuple[np.ndarray, list[int]]:
    if not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
        raise DataError(
            f"{name}: {type(given).__name__} is neither (images, labels) nor a sequence of (image, label) pairs. "
            "Give uint8 images [N, H, W, C] with labels [N], or a data set with len() and [i]."
        )
    images, labels = [], []
    for i in range(len(given)):
        pair = given[i]
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise DataError(f"{name}: item {i} is {type(pair).__name__}, not a pair (image, label).")
        image, label = pair
        if isinstance(image, Image.Image):
            image = np.asarray(image.convert("RGB"))
        images.append(_channels_last(_array(image, name)[None], name)[0])
        labels.append(label)
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise DataError(
            f"{name}: images of different sizes came ({shapes[0]} and {shapes[1]}). Resize them to one size first."
        )
    return (np.stack(images) if images else np.zeros((0, 1, 1, 3), np.uint8)), labels


def _array(image: Any, name: str) -> np.ndarray:
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"{name}: an image is {type(image).__name__}; it must be a PIL image, an array or a tensor."
        )
    return image


def _channels_last(images: Any, name: str) -> np.ndarray:
    """[N, H, W, C] of [N, H, W], [N, H, W, C] or [N, C, H, W]: uint8, or float32 for what is prepared already.

    uint8 has its channels last where the last axis is 1 or 3, as images have; floats have them first, as tensors do.
    """
    found = _array(images, name)
    floats = np.issubdtype(found.dtype, np.floating)
    if found.dtype != np.uint8 and not floats:
        raise DataError(
            f"{name}: images are {found.dtype}; give uint8 pixels, or floats that are normalised as the DNN takes them."
        )
    if found.ndim == 3 and not floats:
        found = found[..., None]
    if found.ndim != 4:
        raise DataError(f"{name}: images have the shape {list(found.shape)}; give uint8 [N, H, W, C].")
    if floats or (found.shape[-1] not in (1, 3) and found.shape[1] in (1, 3)):
        found = found.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(found, dtype=np.float32 if floats else np.uint8)


def _labels(labels: Any, name: str) -> Ints:
    found = np.asarray([int(v) for v in labels] if isinstance(labels, list) else labels)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise DataError(
            f"{name}: labels are {found.dtype} {list(found.shape)}; give one whole number per image, [N]."
        )
    return found.astype(np.int64)

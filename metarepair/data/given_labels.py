"""Checks the labels that a caller passes in: one whole number for each image, in any container.

Nothing is rounded or guessed: a label of 1.7, a string or a one-hot row is refused, with the number of its image.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from tasks.errors import DataError
from tasks.records import Ints


def collect_labels(labels: Any, *, name: str) -> Ints:
    """The labels as int64 [N]; errors call them by `name`.

    labels: an array or a tensor of whole numbers [N], or any iterable of whole numbers, which may be arrays and tensors
    without axes. Raises a DataError that names the first label that is not a whole number.
    """
    array = labels
    if isinstance(labels, torch.Tensor) and not labels.is_floating_point():
        array = labels.numpy(force=True)
    whole = isinstance(array, np.ndarray) and array.dtype.kind in "iu" and np.can_cast(array.dtype, np.int64)
    if whole and array.ndim == 1:
        return np.asarray(array, np.int64)
    if isinstance(labels, str | bytes) or not isinstance(labels, Iterable) or getattr(labels, "ndim", 1) == 0:
        raise DataError(f"{name}: labels are {type(labels).__name__}; give one whole number for each image.")
    return np.array([_whole_number(label, i, name) for i, label in enumerate(labels)], np.int64)


def check_range(labels_N: Ints, *, name: str, module: str, num_classes: int) -> None:
    """Raise DataError if a label is not one of the DNN's classes."""
    outside = np.flatnonzero((labels_N < 0) | (labels_N >= num_classes))
    if len(outside):
        raise DataError(
            f"{name}: the label of image {outside[0]} is {labels_N[outside[0]]}; {module} has {num_classes} classes, "
            f"0..{num_classes - 1} ({len(outside)} such labels). Leave these images out, or correct their labels."
        )


def _whole_number(label: Any, i: int, name: str) -> int:
    value, kind = label, type(label).__name__
    if isinstance(label, torch.Tensor | np.ndarray):
        kind = str(label.dtype).removeprefix("torch.")
        if label.ndim:
            raise DataError(
                f"{name}: the label of image {i} has the shape {list(label.shape)}; labels are whole numbers, one for "
                "each image, [N]. For one-hot labels these are labels.argmax(1)."
            )
    if isinstance(label, torch.Tensor | np.ndarray | np.generic):
        value = label.item()
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return value
    remedy = "Give the number of each image's correct class."
    if isinstance(value, str):
        remedy = "Give the number of each class in the order of the DNN's outputs."
    elif isinstance(value, bool | float):
        remedy = "If they are classes, convert them first: labels.astype(int)."
    raise DataError(
        f"{name}: the label of image {i} is {repr(value)[:60]} ({kind}); labels are whole numbers, one for each image. "
        f"{remedy}"
    )

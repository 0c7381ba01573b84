"""Check that labels are one integer per image: none is rounded, and the first wrong one is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from metarepair.data.given_images import collect_images
from metarepair.data.given_labels import check_range, collect_labels
from tasks.errors import DataError

IMAGES = np.zeros((3, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "labels",
    [
        [0, 2, 1],
        (0, 2, 1),
        np.array([0, 2, 1], np.uint8),
        np.array([0, 2, 1], np.uint64),
        np.array([0, 2, 1], object),
        torch.tensor([0, 2, 1]),
        torch.tensor([0, 2, 1], dtype=torch.uint8),
        [np.int32(0), np.array(2), torch.tensor(1)],
        list(torch.tensor([0, 2, 1])),
    ],
    ids=str,
)
def test_integers_in_any_container_are_read(labels: Any) -> None:
    found = collect_labels(labels, name="failures")
    assert found.dtype == np.int64
    assert found.tolist() == [0, 2, 1]


def as_pairs(labels: Any) -> Any:
    return [(image, label) for image, label in zip(IMAGES, labels, strict=True)]


def as_arrays(labels: Any) -> Any:
    return IMAGES, labels


@pytest.mark.parametrize("door", [as_pairs, as_arrays])
@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0, 1.7, 2], r"image 1 is 1\.7 \(float\)"),
        (np.array([0, 1.7, 2]), r"image 0 is 0\.0 \(float64\)"),
        (np.array([1, 1, 1], np.float32), r"image 0 is 1\.0 \(float32\)"),
        (torch.tensor([1.0, 1.7, 2.0]), r"image 0 is 1\.0 \(float32\)"),
        (torch.tensor([1.0, 1.7, 2.0]).bfloat16(), r"image 0 is 1\.0 \(bfloat16\)"),
        ([0, 1, float("nan")], r"image 2 is nan \(float\)"),
        ([0, 1, True], r"image 2 is True \(bool\)"),
        (np.array([True, False, True]), r"image 0 is True \(bool"),
        (torch.tensor([True, False, True]), r"image 0 is True \(bool\)"),
        (["cat", "dog", "cat"], r"image 0 is 'cat' \(str\).*in the order of the DNN's outputs"),
        (np.array(["3", "2", "1"]), r"image 0 is '3' \(str_\)"),
        ([0, "3", 1], r"image 1 is '3' \(str\)"),
        ([None, None, None], r"image 0 is None \(NoneType\)"),
        ([0, 1, 2**70], r"image 2 is 1180591620717411303424 \(int\)"),
        (np.array([0, 1, 2**63], np.uint64), r"image 2 is 9223372036854775808 \(uint64\)"),
        (np.eye(3, dtype=int), r"image 0 has the shape \[3\].*argmax\(1\)"),
        (torch.eye(3), r"image 0 has the shape \[3\].*argmax\(1\)"),
        (np.array([[0], [1], [2]]), r"image 0 has the shape \[1\]"),
    ],
    ids=str,
)
def test_a_label_that_is_not_an_integer_is_named_in_pairs_and_in_arrays(
    door: Callable[[Any], Any], labels: Any, says: str
) -> None:
    for name in ("failures", "clean", "clean_training"):
        with pytest.raises(DataError, match=f"^{name}: the label of {says}"):
            collect_images(door(labels), name=name)


@pytest.mark.parametrize("labels", ["cat", 3, None, np.array(3), torch.tensor(3)])
def test_labels_that_are_not_a_sequence_are_refused(labels: Any) -> None:
    with pytest.raises(DataError, match=r"failures: labels are .*; give one whole number for each image"):
        collect_labels(labels, name="failures")


@pytest.mark.parametrize(("label", "ignored"), [(-100, 1), (4, 1), (-1, 1)])
def test_a_label_outside_the_classes_is_named_with_the_classes(label: int, ignored: int) -> None:
    with pytest.raises(
        DataError, match=rf"clean: the label of image 1 is {label}; Net has 4 classes, 0\.\.3"
    ):
        check_range(np.array([0, label, 3]), name="clean", module="Net", num_classes=4)
    check_range(np.array([0, 3]), name="clean", module="Net", num_classes=4)

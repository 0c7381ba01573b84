"""Measure how well the DNN does on photographs: accuracy with its interval, classes, confusion, calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metarepair.diagnosis.seen import Answers
from metarepair.evaluation.bounds import share_interval
from metarepair.evaluation.calibration import Bin, calibration_bins, calibration_error
from tasks.records import Ints

# N images, K classes

CONFUSED = 10  # pairs of classes that are listed


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many of some images are right, as a share with its 95% interval (Wilson)."""

    right: int
    images: int
    share: float
    low: float
    high: float


def share_of(right: int, images: int) -> Share | None:
    """The share of right images; None without images."""
    if not images:
        return None
    low, high = share_interval(right, images)
    return Share(right=right, images=images, share=right / images, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class ClassRecall:
    """The share of a class's images that are classified as that class."""

    name: str
    recall: Share


@dataclass(frozen=True, kw_only=True)
class Confused:
    """How many images of a class are taken for another."""

    label: str
    predicted: str
    images: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The expected calibration error, the mean confidence, and the bins."""

    error: float
    confidence: float
    bins: list[Bin]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What the DNN gets right and wrong on labelled images.

    Attributes:
        whole: of all images.
        classes: recall of each class that has images, the worst first.
        confusion: number of images [K][K] by label and predicted class.
        confused: the pairs of classes that are most often confused.
        calibration: of all images.
    """

    whole: Share
    classes: list[ClassRecall]
    confusion: list[list[int]]
    confused: list[Confused]
    calibration: Calibration


def accuracy_of(found: Answers, labels_N: Ints, names: tuple[str, ...]) -> Accuracy:
    """Measure the answers to N ≥ 1 images with these labels."""
    right_N = found.right(labels_N)
    confusion_KK = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion_KK, (labels_N, found.classes_N), 1)
    bins = calibration_bins(found.confidence_N, right_N)
    whole = share_of(int(right_N.sum()), len(right_N))
    assert whole is not None
    return Accuracy(
        whole=whole,
        classes=_recalls(confusion_KK, names),
        confusion=confusion_KK.tolist(),
        confused=_confused(confusion_KK, names),
        calibration=Calibration(
            error=calibration_error(bins), confidence=float(found.confidence_N.mean()), bins=bins
        ),
    )


def _recalls(confusion_KK: NDArray[np.int64], names: tuple[str, ...]) -> list[ClassRecall]:
    shares = [share_of(int(row[label]), int(row.sum())) for label, row in enumerate(confusion_KK)]
    found = [ClassRecall(name=name, recall=s) for name, s in zip(names, shares, strict=True) if s is not None]
    return sorted(found, key=lambda one: one.recall.share)


def _confused(confusion_KK: NDArray[np.int64], names: tuple[str, ...]) -> list[Confused]:
    wrong_KK = confusion_KK - np.diag(np.diag(confusion_KK))
    order = np.argsort(-wrong_KK, axis=None, kind="stable")[:CONFUSED]
    pairs = [np.unravel_index(place, wrong_KK.shape) for place in order]
    return [
        Confused(label=names[i], predicted=names[j], images=int(wrong_KK[i, j]))
        for i, j in pairs
        if wrong_KK[i, j]
    ]

"""Check accuracies, confusion and calibration of a diagnosis against small examples computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from metarepair.diagnosis.measures import accuracy_of, share_of
from metarepair.diagnosis.seen import Answers
from metarepair.evaluation.calibration import calibration_bins, calibration_error

LABELS = np.array([0, 0, 0, 1, 1, 2])
FOUND = Answers(
    classes_N=np.array([0, 1, 1, 1, 2, 2]), confidence_N=np.array([0.9, 0.6, 0.6, 0.8, 0.5, 1.0], np.float32)
)


def test_the_interval_is_wilsons() -> None:
    """Wilson 1927 in closed form: 8 of 10 at z = 1.96."""
    share = share_of(8, 10)
    assert share is not None
    z, p, n = 1.959964, 0.8, 10
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (share.share, share.low, share.high) == pytest.approx((p, middle - half, middle + half))
    assert share_of(0, 0) is None


def test_classes_come_worst_first_and_without_those_that_have_no_image() -> None:
    found = accuracy_of(FOUND, LABELS, ("a", "b", "c", "d"))
    assert [(one.name, one.recall.right, one.recall.images) for one in found.classes] == [
        ("a", 1, 3),
        ("b", 1, 2),
        ("c", 1, 1),
    ]
    assert (found.whole.right, found.whole.images) == (3, 6)
    assert found.confusion == [[1, 2, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert [(one.label, one.predicted, one.images) for one in found.confused] == [
        ("a", "b", 2),
        ("b", "c", 1),
    ]


def test_calibration_is_the_mean_gap_of_bins() -> None:
    right = FOUND.right(LABELS)
    bins = calibration_bins(FOUND.confidence_N, right)
    assert [one.count for one in bins] == [1, 2, 1, 1, 1]  # 0.5 | 0.6 0.6 | 0.8 | 0.9 | 1.0
    gaps = [abs(0.5 - 0), 2 * abs(0.6 - 0), abs(0.8 - 1), abs(0.9 - 1), 0]
    assert calibration_error(bins) == pytest.approx(sum(gaps) / 6, rel=1e-6)
    assert calibration_error([]) == 0

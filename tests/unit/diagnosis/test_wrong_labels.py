"""Check that wrong labels come first in the ranking of a real DNN's failures."""

from __future__ import annotations

import numpy as np

from benchmarks.suspicious_labels import Bench, planted, table


def test_planted_labels_are_a_twentieth_and_all_other() -> None:
    labels = np.arange(200) % 10
    given, wrong = planted(labels, np.random.default_rng(0), 10)
    assert wrong.sum() == 10
    assert ((given != labels) == wrong).all()


def test_wrong_labels_are_found_twice_as_often_as_at_random() -> None:
    """The record of ten seeds is in docs; here one seed, whose ratio is about five."""
    found = Bench().measure("motion_blur", 0)
    assert found.first >= 2 * found.random
    assert found.wrong > 20
    assert "motion_blur" in table({"motion_blur": [found]})

"""Check that mining keeps the images that the DNN misclassifies and splits them into disjoint sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tasks.corruptions import corrupt
from tasks.datasets import load_dataset
from tasks.environments import corrupted
from tasks.errors import TooFewFailuresError
from tasks.experiences.mining import COLLECT, FAIL, UNUSED, mine, split_failures

RANDOM = np.random.default_rng(1)
IMAGE_IDS = RANDOM.permutation(np.repeat(np.arange(100, 160), 4))  # 60 images that fail at 4 severities each
LABELS = IMAGE_IDS % 7


def split(collect: int = 50, **changes: Any) -> np.ndarray:
    settings: dict[str, Any] = {"rule": "random", "split_by": "image", "seed": 0, "environment": "fog"}
    return split_failures(IMAGE_IDS, LABELS, collect=collect, **(settings | changes))


@pytest.mark.parametrize("rule", ["random", "stratified"])
@pytest.mark.parametrize("split_by", ["image", "example"])
@pytest.mark.parametrize("collect", [1, 50, 51, 199])
def test_exactly_the_requested_number_is_collected(rule: str, split_by: str, collect: int) -> None:
    sides = split(collect, rule=rule, split_by=split_by)
    assert (sides == COLLECT).sum() == collect
    assert (sides == FAIL).any()


@pytest.mark.parametrize("rule", ["random", "stratified"])
@pytest.mark.parametrize("collect", [1, 50, 51, 150])
def test_a_split_by_image_has_no_image_on_both_sides(rule: str, collect: int) -> None:
    sides = split(collect, rule=rule)
    collected, failed, unused = (set(IMAGE_IDS[sides == side]) for side in (COLLECT, FAIL, UNUSED))
    assert not collected & failed
    assert unused <= collected, "only the rest of a collected image goes unused"


def test_a_split_by_image_leaves_failures_of_only_the_last_image_unused() -> None:
    assert (split(51) == UNUSED).sum() == 1  # 12 whole images of 4, and 3 of the thirteenth
    assert (split(52) == UNUSED).sum() == 0


def test_a_split_by_example_uses_every_failure_and_shares_images() -> None:
    sides = split(50, split_by="example")
    assert not (sides == UNUSED).any()
    assert set(IMAGE_IDS[sides == COLLECT]) & set(IMAGE_IDS[sides == FAIL])


def test_stratified_collects_the_same_number_of_each_class_and_random_does_not() -> None:
    labels = np.concatenate([np.zeros(150, int), np.ones(30, int), np.full(20, 2)])
    counts = {}
    for rule in ("random", "stratified"):
        sides = split_failures(
            np.arange(200),
            labels,
            collect=60,
            rule=rule,
            split_by="image",
            seed=0,
            environment="fog",  # type: ignore[arg-type]
        )
        counts[rule] = np.bincount(labels[sides == COLLECT]).tolist()
    assert counts["stratified"] == [20, 20, 20]
    assert counts["random"][0] > 30


def test_a_class_with_too_few_failures_leaves_its_share_to_the_others() -> None:
    labels = np.array([0] * 40 + [1] * 40 + [2] * 4)
    sides = split_failures(
        np.arange(84), labels, collect=60, rule="stratified", split_by="image", seed=0, environment="fog"
    )
    assert np.bincount(labels[sides == COLLECT]).tolist() == [28, 28, 4]


def test_the_split_is_keyed_by_seed_and_environment() -> None:
    np.testing.assert_array_equal(split(), split())
    assert (split() != split(seed=1)).any()
    assert (split() != split(environment="snow")).any()


@pytest.mark.parametrize("collect", [240, 1000])
def test_too_few_failures_are_refused_with_their_count(collect: int) -> None:
    with pytest.raises(
        TooFewFailuresError, match=rf"fog: .* fails on 240 examples.*mining\.collect={collect}.*less than 240"
    ):
        split(collect)


def test_a_split_that_leaves_no_d_fail_is_an_error() -> None:
    with pytest.raises(TooFewFailuresError, match="none is left for D_fail"):
        split(239)  # all 60 images are needed
    assert (split(236) == FAIL).sum() == 4


@pytest.mark.parametrize("batch_size", [3, 64])
def test_exactly_the_wrong_predictions_are_kept_with_the_pixels_that_were_classified(batch_size: int) -> None:
    data = load_dataset("cifar10_sample", "test").head(30)
    rows = np.arange(5, 20)

    def predict(images: np.ndarray) -> np.ndarray:  # depends only on the pixels, as a DNN does
        return images.reshape(len(images), -1).sum(1, dtype=np.int64) % 10

    mined = mine(
        predict, corrupted(data, "fog", severities=[2, 4], seed=3), rows, seed=3, batch_size=batch_size
    )
    expected = []
    for severity in (2, 4):
        images = corrupt(
            data.images(rows), image_ids_B=data.image_ids_N[rows], corruption="fog", severity=severity, seed=3
        )
        wrong = [i for i, row in enumerate(rows) if predict(images)[i] != data.labels_N[row]]
        expected += [
            (int(data.image_ids_N[rows[i]]), severity, int(data.labels_N[rows[i]]), images[i]) for i in wrong
        ]
        assert mined.examined[severity] == 15
        assert mined.correct[severity] == 15 - len(wrong)
    f = mined.failures
    found = zip(f.image_ids_N.tolist(), f.severities_N.tolist(), f.labels_N.tolist(), strict=True)
    assert list(found) == [e[:3] for e in expected]
    np.testing.assert_array_equal(f.images_NHWC, np.stack([e[3] for e in expected]))
    np.testing.assert_array_equal(f.predicted_N, predict(f.images_NHWC))


def test_a_dnn_that_is_always_right_has_no_failures() -> None:
    data = load_dataset("cifar10_sample", "test").head(6)
    mined = mine(
        lambda _: data.labels_N,
        corrupted(data, "fog", severities=[1], seed=0),
        np.arange(6),
        seed=0,
        batch_size=6,
    )
    assert len(mined.failures) == 0
    assert mined.correct == mined.examined == {1: 6}

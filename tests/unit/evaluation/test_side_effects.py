"""Test what a repair is said to have changed, on made-up predictions and against torchmetrics."""

from __future__ import annotations

from dataclasses import replace
from math import comb
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_precision,
    multiclass_recall,
)

from metarepair.evaluation.side_effects import (
    CLEAN,
    MOST_KINDS,
    OTHERS,
    TARGET,
    JudgedImages,
    fallen_classes,
    judged_sets,
    side_effects,
    side_effects_of,
)
from tasks.records import Ints

NAMES = ("cat", "dog", "frog", "never seen")


def judged(labels: Any, *predicted: Any, name: str = CLEAN, kinds: Any = None) -> JudgedImages:
    """The predictions before, and after each repair."""
    labels_N, classes = np.asarray(labels, np.int64), np.asarray(predicted, np.int64)
    return JudgedImages(
        name=name,
        image_ids_N=np.arange(len(labels_N)),
        severities_N=np.zeros(len(labels_N), np.int64),
        kinds_N=np.asarray(kinds if kinds is not None else [""] * len(labels_N)),
        labels_N=labels_N,
        classes=classes,
        confidence=np.full(classes.shape, 0.8, np.float32),
    )


def at_random(seed: int, size: int = 300) -> JudgedImages:
    generator = np.random.default_rng(seed)
    labels_N: Ints = generator.integers(0, 3, size)
    wrong = generator.integers(0, 4, (3, size))
    classes = np.where(generator.random((3, size)) < [[0.7], [0.8], [0.5]], labels_N, wrong)
    confidence = generator.uniform(0.25, 1, (3, size)).astype(np.float32)
    return replace(judged(labels_N, *classes), confidence=confidence)


def test_images_that_became_right_and_wrong_are_counted_and_tested() -> None:
    before = [0, 0, 0, 1, 1, 2, 2, 2, 2, 2]
    after = [0, 1, 1, 1, 1, 1, 1, 1, 1, 2]
    found = side_effects(judged([0, 0, 0, 1, 1, 1, 1, 1, 1, 2], before, after), 0, NAMES)
    assert (found["images"], found["fixed"], found["broken"]) == (10, 4, 2)
    assert (found["before"], found["after"], found["gain"]) == pytest.approx((0.6, 0.8, 0.2))
    assert found["p"] == pytest.approx(2 * sum(comb(6, k) for k in range(3)) / 2**6)
    assert found["low"] < 0.2 < found["high"]
    assert [one["name"] for one in found["classes"]] == ["cat", "frog", "dog"]
    cat, frog, dog = found["classes"]
    assert (cat["recall_before"], cat["recall_after"], cat["broken"]) == pytest.approx((1.0, 1 / 3, 2))
    assert (dog["fixed"], dog["precision_before"], dog["precision_after"]) == pytest.approx((4, 1.0, 0.75))
    assert (frog["precision_before"], frog["precision_after"]) == pytest.approx((0.2, 1.0))
    assert [0, 1, 0, 2] in found["confusion"]
    assert [1, 2, 4, 0] in found["confusion"]


@pytest.mark.parametrize("model", [0, 1])
def test_classes_and_calibration_are_those_of_torchmetrics(model: int) -> None:
    images = at_random(model)
    found = side_effects(images, model, NAMES)
    labels = torch.from_numpy(images.labels_N)
    for when, row in (("before", 0), ("after", model + 1)):
        predicted = torch.from_numpy(images.classes[row])
        recall = multiclass_recall(predicted, labels, num_classes=4, average="none")
        precision = multiclass_precision(predicted, labels, num_classes=4, average="none")
        for one in found["classes"]:
            number = NAMES.index(one["name"])
            assert one[f"recall_{when}"] == pytest.approx(float(recall[number]))
            assert one[f"precision_{when}"] == pytest.approx(float(precision[number]))
        # torchmetrics takes probabilities of all classes, whose largest is that of the predicted class.
        confidence = torch.from_numpy(images.confidence[row])
        rest = (1 - confidence) / 3
        probabilities = rest[:, None].repeat(1, 4).scatter(1, predicted[:, None], confidence[:, None])
        theirs = multiclass_calibration_error(probabilities, labels, num_classes=4, n_bins=15)
        assert found["calibration"][when]["error"] == pytest.approx(float(theirs), abs=1e-6)
    assert sum(cell[2] for cell in found["confusion"]) == sum(cell[3] for cell in found["confusion"]) == 300


def test_a_class_without_images_is_not_told_and_one_never_predicted_has_no_precision() -> None:
    found = side_effects(judged([0, 1], [0, 1], [0, 0]), 0, NAMES)
    assert {one["name"]: one["precision_after"] for one in found["classes"]} == {"cat": 0.5, "dog": None}
    assert side_effects(judged([0], [0], [0]), 0, NAMES)["p"] == 1.0


def test_severities_groups_and_environments_are_measured_apart_if_they_are_few() -> None:
    kinds = ["severity 1", "severity 1", "severity 2"]
    found = side_effects(judged([0, 0, 0], [0, 1, 1], [0, 0, 1], kinds=kinds), 0, NAMES)
    assert found["kinds"] == [
        {"name": "severity 1", "images": 2, "before": 0.5, "after": 1.0},
        {"name": "severity 2", "images": 1, "before": 0.0, "after": 0.0},
    ]
    many = MOST_KINDS + 1
    apart = judged([0] * many, [0] * many, [0] * many, kinds=[f"group {n}" for n in range(many)])
    assert side_effects(apart, 0, NAMES)["kinds"] == []


def test_other_environments_are_told_together() -> None:
    seen = [
        judged([0], [0], [1]),
        judged([0], [1], [0], name="night"),
        judged([0, 1], [0, 0], [0, 1], name="fog"),
        judged([2], [2], [2], name="snow"),
    ]
    found = side_effects_of(judged_sets(seen), 0, NAMES)
    assert list(found) == [CLEAN, TARGET, OTHERS]
    assert [found[name]["images"] for name in found] == [1, 1, 3]
    assert [(one["name"], one["after"]) for one in found[OTHERS]["kinds"]] == [("fog", 1.0), ("snow", 1.0)]
    assert list(side_effects_of(judged_sets(seen[:2]), 0, NAMES)) == [CLEAN, TARGET]


def effects_with(broken: int, images: int = 40) -> dict[str, dict[str, Any]]:
    """Of a repair that breaks so many of the cats, and nothing else."""
    labels = [0] * images + [1] * images
    after = [1] * broken + [0] * (images - broken) + [1] * images
    seen = [judged(labels, labels, after), judged(labels, labels, labels, name="night")]
    return side_effects_of(judged_sets(seen), 0, NAMES)


def test_a_class_that_falls_beyond_chance_is_told_and_half_of_it_makes_it_lost() -> None:
    destroyed = {"where": CLEAN, "name": "cat", "images": 40, "recall_before": 1.0}
    assert fallen_classes(effects_with(35)) == [destroyed | {"recall_after": 0.125, "lost": True}]
    assert fallen_classes(effects_with(15)) == [destroyed | {"recall_after": 0.625, "lost": False}]
    assert fallen_classes(effects_with(4)) == []  # 10 points, and it may be chance
    assert fallen_classes(effects_with(30, images=400)) == []  # beyond chance, and only 7.5 points

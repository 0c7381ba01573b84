"""Test the images that judge a task: failures, and images beside them by their shares in the outer loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.data.clean_images import CleanImages
from metarepair.data.learned_images import LearnedImages
from metarepair.engine.types import TaskBatch
from metarepair.meta_training.meta_train import training_settings
from metarepair.meta_training.outer import outer_loss
from metarepair.meta_training.task_source import TaskSource
from metarepair.models.build import DeployedModel
from tasks.datasets import load_dataset
from tasks.environments import corrupted, corrupted_images
from tasks.errors import DataError
from tasks.experiences.mining import mine
from tasks.records import Experience, Failures, Pixels
from tasks.sampling.confidence import Confidence
from tasks.storage.settings import changes, plain

TRAIN = load_dataset("cifar10_sample", "train").head(200)
SEVERITIES = (2, 5)
EVEN = Confidence(
    names=("fog", "contrast"), probabilities_K=np.full(2, 0.5), rule="uniform", alpha=0.0, beta=0.0
)


def config(**train: Any) -> Config:
    mining = {"experiences": ["fog", "contrast"], "severities": list(SEVERITIES)}
    task = {"shots": 1, "query_size": 10}
    return parse_config({"name": "x", "seed": 4, "mining": mining, "task": task, "train": train})


def always_wrong(images: Pixels) -> np.ndarray:
    return np.full(len(images), 99)


def failures(corruption: str, rows: range) -> Failures:
    return mine(
        always_wrong,
        corrupted(TRAIN, corruption, severities=SEVERITIES, seed=4),
        rows,
        seed=4,
        batch_size=50,
        keep="stored",
    ).failures


@pytest.fixture(scope="module")
def experiences() -> dict[str, Experience]:
    return {
        name: Experience(
            corruption=name, collect=failures(name, range(100)), fail=failures(name, range(100, 200))
        )
        for name in ("fog", "contrast")
    }


def source(experiences: dict[str, Experience], **train: Any) -> TaskSource:
    plain = DeployedModel(name="n", module=nn.Linear(1, 1), num_classes=10, mean=(0.0,) * 3, std=(1.0,) * 3)
    return TaskSource(
        deployed=plain,
        experiences=experiences,
        confidence=EVEN,
        config=config(**train),
        clean=CleanImages(images_NHWC=TRAIN.images_NHWC, labels_N=TRAIN.labels_N),
        learned={
            name: LearnedImages(
                source=corrupted(TRAIN, name, severities=SEVERITIES, seed=4), rows_N=np.arange(200)
            )
            for name in experiences
        },
    )


def pixels(images_BCHW: torch.Tensor) -> Pixels:
    return (images_BCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def places_in(images: Pixels, among: Pixels) -> list[int]:
    """Return the index of each image in `among`, or -1 if it is not there."""
    known = {image.tobytes(): row for row, image in enumerate(among)}
    return [known.get(image.tobytes(), -1) for image in images]


UNDER = {
    (name, s): corrupted_images(TRAIN, np.arange(200), corruption=name, severity=s, seed=4)
    for name in ("fog", "contrast")
    for s in SEVERITIES
}


def experience_of(task: TaskBatch) -> str:
    """The corruption of the failures that a task adapts to."""
    place = places_in(pixels(task.support.images_BCHW)[:1], np.concatenate(list(UNDER.values())))[0]
    return list(UNDER)[place // 200][0]


def under(images: Pixels, corruption: str) -> tuple[int, list[int]]:
    """The severity that all images have in common, and the row of each in the split."""
    for severity in SEVERITIES:
        rows = places_in(images, UNDER[corruption, severity])
        if min(rows) >= 0:
            return severity, rows
    raise AssertionError("they are not of one severity")


def test_images_of_the_environment_have_the_corruption_of_the_task(
    experiences: dict[str, Experience],
) -> None:
    made, seen = source(experiences, query={"failures": 5, "environment": 2, "clean": 3}), set()
    for episode in range(12):
        task = made.task(episode, 0)
        assert task.clean is not None
        images, labels = pixels(task.clean.images_BCHW), task.clean.labels_B.numpy()
        clean_rows = places_in(images[:6], TRAIN.images_NHWC)
        assert min(clean_rows) >= 0
        corruption = experience_of(task)
        severity, rows = under(images[6:], corruption)
        assert (TRAIN.labels_N[clean_rows + rows] == labels).all()
        seen.add((corruption, severity))
    assert seen == set(UNDER)  # every corruption at every severity, in some task


def test_right_images_are_those_that_were_not_mined_as_failures(experiences: dict[str, Experience]) -> None:
    """Every image of row 0 to 199 is a failure at both severities, but for rows 40 to 59 at severity 5."""

    def partly(one: Failures) -> Failures:
        kept = (one.severities_N != 5) | ~np.isin(one.image_ids_N, TRAIN.image_ids_N[40:60])
        return one.take(np.flatnonzero(kept))

    some = {
        name: replace(one, collect=partly(one.collect), fail=partly(one.fail))
        for name, one in experiences.items()
    }
    made = source(some, query={"failures": 1, "right": 1, "clean": 1})
    for episode in range(12):
        task = made.task(episode, 0)
        assert task.clean is not None
        others = pixels(task.clean.images_BCHW)
        assert min(places_in(others[:5], TRAIN.images_NHWC)) >= 0
        severity, rows = under(others[5:], experience_of(task))
        assert severity == 5  # the only one with images that are right
        assert len(rows) == 5
        assert set(rows) <= set(range(40, 60))
    with pytest.raises(DataError, match="that the deployed DNN gets right, and there are none"):
        source(experiences, query={"right": 1}).task(0, 0)


def test_without_a_share_of_failures_the_other_images_are_the_query(
    experiences: dict[str, Experience],
) -> None:
    task = source(experiences, query={"failures": 0, "environment": 1, "clean": 1}).task(2, 1)
    assert task.clean is None
    images = pixels(task.query.images_BCHW)
    assert min(places_in(images[:5], TRAIN.images_NHWC)) >= 0
    assert len(under(images[5:], experience_of(task))[1]) == 5
    assert outer_loss(config(query={"failures": 0, "clean": 1}).train, 0, 3).clean_weight == 0.0
    assert outer_loss(config(query={"failures": 3, "clean": 1}).train, 0, 3).clean_weight == 0.25


def test_no_task_learns_from_the_clean_images_that_select(experiences: dict[str, Experience]) -> None:
    made = source(experiences, query={"failures": 1, "clean": 1})
    assert made.clean is not None
    drawn = [made.task(episode, 0).clean for episode in range(40)]
    rows = {
        row for batch in drawn if batch for row in places_in(pixels(batch.images_BCHW), TRAIN.images_NHWC)
    }
    assert len(rows) > 150  # of 180
    assert not rows & set(made.clean.held_out_rows.tolist())


def test_a_run_from_before_this_setting_existed_counts_as_trained_with_its_default() -> None:
    before = plain(training_settings(config()))
    assert before["train"].pop("query") == {"failures": 1, "right": 0, "environment": 0, "clean": 0}
    assert changes(before, training_settings(config())) == []
    assert changes(before, training_settings(config(query={"clean": 0.5}))) == [
        "train.query.clean: 0.0 -> 0.5"
    ]


def test_a_task_is_the_same_whoever_draws_it(experiences: dict[str, Experience]) -> None:
    one, two = (source(experiences, query={"environment": 1}).task(5, 2).clean for _ in range(2))
    assert one is not None
    assert two is not None
    assert torch.equal(one.images_BCHW, two.images_BCHW)
    assert places_in(pixels(one.images_BCHW), TRAIN.images_NHWC) == [-1] * 10

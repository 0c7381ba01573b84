"""Test the clean images of a task: a share of them may be corrupted, and they depend only on the task's number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.data.clean_images import CleanImages
from metarepair.meta_training.meta_train import training_settings
from metarepair.meta_training.task_source import TaskSource
from metarepair.models.build import DeployedModel
from tasks.datasets import load_dataset
from tasks.environments import corrupted, corrupted_images
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
        train=TRAIN,
    )


def pixels(images_BCHW: torch.Tensor) -> Pixels:
    return (images_BCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def places_in(images: Pixels, among: Pixels) -> list[int]:
    """Return the index of each image in `among`, or -1 if it is not there."""
    known = {image.tobytes(): row for row, image in enumerate(among)}
    return [known.get(image.tobytes(), -1) for image in images]


def test_a_share_of_the_clean_images_has_the_corruption_of_the_task(
    experiences: dict[str, Experience],
) -> None:
    under = {
        (name, s): corrupted_images(TRAIN, np.arange(200), corruption=name, severity=s, seed=4)
        for name in experiences
        for s in SEVERITIES
    }
    made, seen = source(experiences, clean_weight=0.5, clean_corrupted=0.4), set()
    for episode in range(12):
        task = made.task(episode, 0)
        assert task.clean is not None
        images, labels = pixels(task.clean.images_BCHW), task.clean.labels_B.numpy()
        clean_rows = places_in(images[:6], TRAIN.images_NHWC)
        assert min(clean_rows) >= 0
        query = places_in(pixels(task.query.images_BCHW)[:1], np.concatenate(list(under.values())))[0]
        (corruption, _), found = list(under)[query // 200], None
        for s in SEVERITIES:
            rows = places_in(images[6:], under[corruption, s])
            if min(rows) >= 0:
                found = s
                assert (TRAIN.labels_N[clean_rows + rows] == labels).all()
        assert found is not None
        seen.add((corruption, found))
    assert seen == set(under)  # every corruption at every severity, in some task


def test_none_of_them_is_corrupted_by_default_and_the_drawn_images_are_the_same(
    experiences: dict[str, Experience],
) -> None:
    plain, mixed = (
        source(experiences, clean_weight=0.5, clean_corrupted=share).task(3, 1).clean for share in (0.0, 0.4)
    )
    assert plain is not None
    assert mixed is not None
    assert min(places_in(pixels(plain.images_BCHW), TRAIN.images_NHWC)) >= 0
    assert torch.equal(plain.labels_B, mixed.labels_B)
    assert torch.equal(plain.images_BCHW[:6], mixed.images_BCHW[:6])
    assert not torch.equal(plain.images_BCHW[6:], mixed.images_BCHW[6:])


def test_a_run_from_before_this_setting_existed_counts_as_trained_with_its_default() -> None:
    before = plain(training_settings(config(clean_weight=0.5)))
    assert before["train"].pop("clean_corrupted") == 0
    assert changes(before, training_settings(config(clean_weight=0.5))) == []
    other = training_settings(config(clean_weight=0.5, clean_corrupted=0.4))
    assert changes(before, other) == ["train.clean_corrupted: 0.0 -> 0.4"]


def test_a_task_is_the_same_whoever_draws_it(experiences: dict[str, Experience]) -> None:
    one, two = (source(experiences, clean_weight=0.5, clean_corrupted=1.0).task(5, 2).clean for _ in range(2))
    assert one is not None
    assert two is not None
    assert torch.equal(one.images_BCHW, two.images_BCHW)
    assert places_in(pixels(one.images_BCHW), TRAIN.images_NHWC) == [-1] * 10

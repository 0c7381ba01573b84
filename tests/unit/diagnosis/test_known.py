"""Check the search for the nearest known environments, with environments that are made for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from metarepair.diagnosis import known
from metarepair.diagnosis.known import FEWEST, nearest_corruptions, nearest_in_kit
from metarepair.models.build import DeployedModel
from small import MeanNet, deployed_of
from tasks.datasets import ArrayDataset, load_dataset
from tasks.distances import frechet_distance, moments
from tasks.environments import CorruptedImages, corrupted
from tasks.errors import DataError

NAMES = ("brightness", "gaussian_noise", "contrast")


class MeanColours:
    """An extractor whose features are the mean and the deviation of each colour."""

    name, dim = "colours", 6

    def __call__(self, images_BHWC_u8: np.ndarray) -> np.ndarray:
        x = images_BHWC_u8.astype(np.float32) / 255
        return np.concatenate([x.mean(axis=(1, 2)), x.std(axis=(1, 2))], axis=1)


@pytest.fixture(scope="module")
def train() -> ArrayDataset:
    return load_dataset("cifar10_sample", "train").head(120)


def sources(train: ArrayDataset) -> list[CorruptedImages]:
    return [corrupted(train, name, severities=(1, 3, 5), seed=0) for name in NAMES]


def one_class_net(answer: int) -> DeployedModel:
    """A net that always answers the same class: it is wrong on all images of the others."""
    module = MeanNet().eval()
    module.last = nn.Linear(6, 10)
    module.last.weight.data.zero_()
    module.last.bias.data = 5.0 * torch.eye(10)[answer]
    return deployed_of(module, num_classes=10)


@pytest.mark.parametrize("name", NAMES)
def test_photographs_under_a_corruption_are_nearest_to_it(train: ArrayDataset, name: str) -> None:
    ours = corrupted(train, name, severities=(3,), seed=1).images(np.arange(60), 3)
    extractor = MeanColours()
    found = nearest_corruptions(
        extractor(ours), sources(train), np.arange(60, 120), one_class_net(3), extractor, seed=0
    )
    assert found.found[0].name == name
    assert {one.name for one in found.found} == set(NAMES)
    assert {one.failures for one in found.found} == {found.failures}
    for one in found.found:
        assert one.low is not None
        assert one.high is not None
        assert 0 <= one.low <= one.high


def test_an_environment_without_failures_has_no_distance(train: ArrayDataset) -> None:
    """A net that is right on one environment has nothing to compare there."""
    robust = replace(sources(train)[0], data=replace(train, labels_N=np.zeros(120, np.int64)))
    extractor = MeanColours()
    ours = extractor(train.images(np.arange(60)))
    found = nearest_corruptions(
        ours, [robust, *sources(train)[1:]], np.arange(60, 120), one_class_net(0), extractor, seed=0
    )
    assert found.too_few == {"brightness": 0}
    assert {one.name for one in found.found} == set(NAMES[1:])


def test_too_few_failures_have_no_distances(train: ArrayDataset) -> None:
    few = np.zeros((FEWEST - 1, 6), np.float32)
    found = nearest_corruptions(few, sources(train), np.arange(60), one_class_net(3), MeanColours(), seed=0)
    assert (found.failures, found.found) == (0, [])
    assert nearest_in_kit(few, {}).failures == 0


def test_a_slow_machine_corrupts_fewer_images(train: ArrayDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor, ours = MeanColours(), MeanColours()(train.images(np.arange(60)))

    def images_used() -> int:
        rows = np.arange(120)
        return nearest_corruptions(ours, sources(train), rows, one_class_net(3), extractor, seed=0).images

    assert images_used() == 120
    monkeypatch.setattr(known, "SECONDS", 1e-6)
    assert images_used() == known.FEWEST_IMAGES


def test_a_kits_moments_give_the_frechet_distance() -> None:
    generator = np.random.default_rng(0)
    ours = generator.normal(size=(40, 6)).astype(np.float32)
    near, far = (generator.normal(shift, 1, size=(50, 6)) for shift in (0.1, 2.0))
    found = nearest_in_kit(ours, {"far": moments(far), "near": moments(near)})
    assert [one.name for one in found.found] == ["near", "far"]
    assert found.found[0].distance == pytest.approx(frechet_distance(moments(near), moments(ours)))
    assert found.found[0].failures == 50
    with pytest.raises(DataError, match="dimensions"):
        nearest_in_kit(ours, {"other": moments(far[:, :3])})

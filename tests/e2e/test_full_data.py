"""Checks that need the full CIFAR-10; part of `make accept`."""

from __future__ import annotations

import numpy as np
import pytest

from metarepair.models import load_deployed
from tasks.datasets import dataset_info, load_dataset

pytestmark = pytest.mark.full_data


def test_the_full_data_set_has_its_published_size_and_statistics() -> None:
    for split, size in (("train", 50_000), ("test", 10_000)):
        data = load_dataset("cifar10", split)  # type: ignore[arg-type]  # the loop's strings are splits
        assert len(data.labels_N) == size
        assert np.bincount(data.labels_N).tolist() == [size // 10] * 10
    info, images = dataset_info("cifar10"), load_dataset("cifar10", "train").images(slice(None))
    assert np.allclose(images.mean((0, 1, 2)) / 255, info.mean, atol=2e-4)


def test_the_shipped_dnn_has_the_accuracy_that_its_readme_states() -> None:
    deployed = load_deployed("resnet8_cifar", "shipped:resnet8_cifar10", dataset_info("cifar10"))
    test = load_dataset("cifar10", "test")
    predicted = deployed.logits(test.images(slice(None))).argmax(1).numpy()
    assert float((predicted == test.labels_N).mean()) == pytest.approx(0.888, abs=0.0005)


def test_the_sample_is_cut_from_the_full_data_set() -> None:
    whole, sample = load_dataset("cifar10", "train"), load_dataset("cifar10_sample", "train")
    assert np.array_equal(whole.images(sample.image_ids_N), sample.images(slice(None)))
    assert np.array_equal(whole.labels_N[sample.image_ids_N], sample.labels_N)

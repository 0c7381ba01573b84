"""Checks that need real tiny-ImageNet-200 images; part of `make accept`, skipped where the images are missing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tasks.datasets import DATA_VARIABLE, Split, dataset_info, load_dataset

pytestmark = [
    pytest.mark.full_data,
    pytest.mark.skipif(
        not (Path(os.environ.get(DATA_VARIABLE, "")) / "tiny-imagenet-200").is_dir(),
        reason="METAREPAIR_DATA has no tiny-imagenet-200",
    ),
]


def grey_share(images_NHWC: np.ndarray) -> float:
    first = images_NHWC[..., :1]
    return float((images_NHWC == first).all((1, 2, 3)).mean())


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_published_files_are_read_completely_with_balanced_classes(split: Split) -> None:
    data = load_dataset("tinyimagenet", split)
    counts = np.bincount(data.labels_N, minlength=200)
    assert counts.tolist() == [counts[0]] * 200
    assert (
        counts[0] == 50 if split == "test" else counts[0] in (100, 500)
    )  # a subset has 100 training images per class
    assert data.image_shape == (64, 64, 3)
    assert len(set(data.labels_N[:200].tolist())) == 200  # the first 200 rows have all classes
    assert 0.01 < grey_share(data.images(slice(None))) < 0.03


def test_mean_and_standard_deviation_equal_the_stated_ones() -> None:
    info, train = dataset_info("tinyimagenet"), load_dataset("tinyimagenet", "train")
    moments = []
    for start in range(0, 20_000, 1000):
        batch = train.images(slice(start, start + 1000)) / np.float64(255)
        moments.append([batch.mean((0, 1, 2)), (batch**2).mean((0, 1, 2))])
    mean, square = np.mean(moments, axis=0)
    assert np.allclose(mean, info.mean, atol=2e-3)
    assert np.allclose(np.sqrt(square - mean**2), info.std, atol=2e-3)
    assert info.classes[:2] == ("goldfish", "European fire salamander")

"""Check the layouts and fine labels of CIFAR-100, and the description of every data set."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.datasets import (
    CIFAR100_CLASSES,
    DATASETS,
    ArrayDataset,
    DataSource,
    corruption_table_of,
    count_images,
    dataset_info,
    load_dataset,
    source_from,
    table_for,
)
from tasks.errors import ConfigError, DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
FINE = [99, 0, 42, 7, 98, 1]


def write_batches(root: Path, **changes: Any) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir()
    rows = IMAGES.transpose(0, 3, 1, 2).reshape(len(IMAGES), 3072)
    batch = {b"data": rows, b"fine_labels": FINE, b"coarse_labels": [19] * 6, b"filenames": [b"a.png"] * 6}
    for name in ("train", "test"):
        (folder / name).write_bytes(
            pickle.dumps(batch | {k.encode(): v for k, v in changes.items()}, protocol=2)
        )


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_published_batches_give_fine_labels(tmp_path: Path, split: Any) -> None:
    write_batches(tmp_path)
    data = load_dataset("cifar100", split, root=str(tmp_path))
    np.testing.assert_array_equal(data.images_NHWC, IMAGES)
    assert data.labels_N.tolist() == FINE
    assert [data.classes[i] for i in (0, 42, 99)] == ["apple", "leopard", "worm"]
    assert count_images(DataSource(name="cifar100", root=str(tmp_path)), split) == (6, 100)


def test_npz_is_read_and_a_label_outside_the_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar100").mkdir()
    np.savez(tmp_path / "cifar100" / "train.npz", images=IMAGES, labels=FINE)
    assert load_dataset("cifar100", "train", root=str(tmp_path)).labels_N.tolist() == FINE
    np.savez(tmp_path / "cifar100" / "train.npz", images=IMAGES, labels=[*FINE[:5], 100])
    with pytest.raises(
        DataError, match=r"cifar100 train: the label of image 5 is 100, outside the 100 classes"
    ):
        load_dataset("cifar100", "train", root=str(tmp_path))


def test_batches_of_cifar10_in_its_place_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    batch = {b"data": np.zeros((1, 3072), np.uint8), b"labels": [1]}
    (folder / "train").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match=r"train cannot be read as a CIFAR-100 batch.*fine_labels"):
        load_dataset("cifar100", "train", root=str(tmp_path))


def test_a_folder_without_cifar100_is_refused_with_its_layouts_and_downloader(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"No CIFAR-100.*cifar-100-python, cifar100/test\.npz.*datasets\.CIFAR100\("
    ):
        load_dataset("cifar100", "test", root=str(tmp_path))


def test_the_classes_are_a_hundred_in_the_published_order() -> None:
    assert len(set(CIFAR100_CLASSES)) == 100
    assert list(CIFAR100_CLASSES) == sorted(CIFAR100_CLASSES)  # the order of the published meta file


@pytest.mark.parametrize(
    ("size", "table"),
    [
        (8, "cifar"),
        (48, "cifar"),
        (49, "tinyimagenet"),
        (112, "tinyimagenet"),
        (113, "imagenet"),
        (384, "imagenet"),
    ],
)
def test_the_corruption_table_depends_on_the_size_unless_one_is_set(size: int, table: str) -> None:
    assert table_for(size) == table
    data = ArrayDataset(
        name="imagefolder",
        split="test",
        classes=("a",),
        image_ids_N=np.arange(1),
        labels_N=np.zeros(1, np.int64),
        images_NHWC=np.zeros((1, size, size, 3), np.uint8),
    )
    assert corruption_table_of(data) == table
    assert corruption_table_of(ArrayDataset(**{**vars(data), "corruption_table": "imagenet"})) == "imagenet"


def test_the_corruption_table_of_each_data_set_fits_its_size() -> None:
    assert {name: table_for(info.image_size) for name, info in DATASETS.items()} == {
        name: info.corruption_table for name, info in DATASETS.items()
    }


def test_mean_and_deviation_can_be_set_for_any_data_set() -> None:
    given = DataSource(name="cifar10", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    info = dataset_info(given)
    assert (info.mean, info.std) == (given.mean, given.std)
    assert info.classes == dataset_info("cifar10").classes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cifar10", "image_size": 64}, r"data\.image_size is given, but cifar10 has its own"),
        ({"name": "tinyimagenet", "train": "a", "test": "b"}, r"data\.train.*imagefolder, parquet"),
        ({"name": "imagefolder", "image_column": "a"}, r"data\.image_column.*it is for parquet"),
        ({"name": "imagefolder", "train": "a"}, r"data\.train and data\.test go together"),
        ({"name": "cifar10", "mean": (0.1, 0.1, 0.1)}, r"data\.mean and data\.std go together"),
        ({"name": "cifar10", "mean": (0.1, 0.1, 0.1), "std": (0.1, 0.0, 0.1)}, r"data\.std.*above 0"),
        ({"name": "parquet", "classes": ("a", "a")}, r"data\.classes must name"),
        ({"name": "parquet", "classes": ()}, r"data\.classes must name"),
        ({"name": "image_folder"}, "no data set 'image_folder'; did you mean 'imagefolder'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataSource(**settings)


def test_a_source_is_restored_from_recorded_settings_without_its_path() -> None:
    recorded = {
        "name": "parquet",
        "classes": ["a", "b"],
        "image_size": 64,
        "max_train_images": 3,
        "archive": None,
    }
    assert source_from(recorded) == DataSource(name="parquet", classes=("a", "b"), image_size=64)

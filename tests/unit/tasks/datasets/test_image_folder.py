"""Check folders of images with one folder per class, in every documented layout, and errors on missing parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.datasets import DATA_VARIABLE, DataSource, count_images, dataset_info, load_dataset
from tasks.errors import DataError

GREYS = {"train": {"dog": 2, "cat": 3, "polar bear": 1}, "val": {"dog": 1, "cat": 1, "polar bear": 1}}


def write(root: Path, layout: dict[str, dict[str, int]], *, below: str = "", suffix: str = "png") -> Path:
    """Write the given number of images of each class; red is the index of the class in the layout, green the number."""
    for split, classes in layout.items():
        for label, (name, count) in enumerate(classes.items()):
            folder = root / split / name / below
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (label, number, 7)).save(folder / f"{number}.{suffix}")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path, GREYS)


def source(root: Path, **settings: object) -> DataSource:
    return replace(DataSource(name="imagefolder", root=str(root)), **settings)  # type: ignore[arg-type]


def reds(data: object) -> list[int]:
    return [int(v) for v in np.asarray(data)[:, 0, 0, 0]]


def test_classes_are_the_sorted_folder_names_of_both_splits(root: Path) -> None:
    train, test = (load_dataset(source(root), split) for split in ("train", "test"))  # type: ignore[arg-type]
    assert train.classes == test.classes == ("cat", "dog", "polar bear")
    assert train.labels_N.tolist() == [0, 1, 2, 0, 1, 0]
    assert reds(train.images(slice(None))) == [1, 0, 2, 1, 0, 1]
    assert reds(test.images(slice(None))) == [1, 0, 2]


def test_the_description_of_a_data_set_before_decoding(root: Path) -> None:
    info = dataset_info(source(root))
    assert info.classes == ("cat", "dog", "polar bear")
    assert (info.image_size, info.corruption_table) == (8, "cifar")
    assert info.mean == (0.485, 0.456, 0.406)
    large = dataset_info(source(root, image_size=224, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))
    assert (large.image_size, large.corruption_table) == (224, "imagenet")
    assert (large.mean, large.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert count_images(source(root), "train") == (6, 3)


def test_given_folders_and_the_environment_variable(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_dataset(source(root), "test").digest()
    given = DataSource(name="imagefolder", train=str(root / "train"), test=str(root / "val"))
    assert load_dataset(given, "test").digest() == whole
    monkeypatch.setenv(DATA_VARIABLE, str(root))
    assert load_dataset("imagefolder", "test").digest() == whole


def test_images_may_be_in_subfolders_and_have_suffixes_in_capitals(tmp_path: Path) -> None:
    write(tmp_path, GREYS, below="images/a", suffix="PNG")
    assert load_dataset(source(tmp_path), "train").labels_N.tolist() == [0, 1, 2, 0, 1, 0]


def test_other_and_hidden_files_are_ignored(root: Path) -> None:
    before = load_dataset(source(root), "train").digest()
    (root / "train" / "cat" / "boxes.txt").write_text("1 2 3", encoding="utf-8")
    (root / "train" / "cat" / "._0.png").write_bytes(b"not an image")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "words.txt").touch()
    assert load_dataset(source(root), "train").digest() == before


def test_the_folder_test_takes_precedence_over_val(root: Path) -> None:
    write(root, {"test": {"dog": 2, "cat": 2, "polar bear": 2}})
    assert len(load_dataset(source(root), "test").labels_N) == 6


def test_named_classes_set_the_order_and_may_lack_images(root: Path) -> None:
    named = source(root, classes=("polar bear", "fox", "dog", "cat"))
    data = load_dataset(named, "train")
    assert data.classes == dataset_info(named).classes == ("polar bear", "fox", "dog", "cat")
    assert data.labels_N.tolist() == [0, 2, 3, 2, 3, 3]
    assert reds(data.images(slice(None))) == [2, 0, 1, 0, 1, 1]


def test_a_folder_that_is_not_named_after_a_class_is_refused(root: Path) -> None:
    with pytest.raises(
        DataError, match=r"class folder 'dog', which data\.classes does not have; did you mean 'dogs'"
    ):
        load_dataset(source(root, classes=("cat", "dogs", "polar bear")), "train")
    (root / "val" / "dog").rename(root / "val" / "hound")
    with pytest.raises(
        DataError, match=r"val has the class folder 'hound', which the training split does not have"
    ):
        load_dataset(source(root), "test")


def test_a_class_without_a_folder_or_without_images_is_refused(root: Path) -> None:
    (root / "val" / "dog" / "0.png").unlink()
    with pytest.raises(DataError, match=r"class folder .*val/dog holds no images \(\.jpg.*remove it"):
        load_dataset(source(root), "test")
    (root / "val" / "dog").rmdir()
    with pytest.raises(DataError, match=r"val lacks the class folder 'dog' that the training split has"):
        load_dataset(source(root), "test")


def test_an_empty_first_class_is_refused_before_anything_is_decoded(root: Path) -> None:
    for path in (root / "train" / "cat").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"train/cat holds no images"):
        dataset_info(source(root))


@pytest.mark.parametrize("splits", [("train",), ("val",), ("train", "val")])
@pytest.mark.parametrize("classes", [None, ("cat", "dog", "polar bear", "zebra")])
def test_an_empty_class_folder_is_refused_by_name(
    root: Path, splits: tuple[str, ...], classes: tuple[str, ...] | None
) -> None:
    for split in splits:
        (root / split / "zebra").mkdir()
    with pytest.raises(DataError, match=rf"class folder .*{splits[0]}/zebra holds no images .*remove it"):
        dataset_info(source(root, classes=classes))


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("train", r"val lacks the class folder 'zebra' that the training split has .*remove it there"),
        ("val", r"val has the class folder 'zebra', which the training split does not have"),
    ],
)
def test_a_class_that_only_one_split_has_is_refused_by_name(root: Path, split: str, said: str) -> None:
    write(root, {split: {"zebra": 1}})
    with pytest.raises(DataError, match=said):
        dataset_info(source(root))
    with pytest.raises(DataError, match=r"has the class folder 'zebra', which data\.classes does not have"):
        dataset_info(source(root, classes=("cat", "dog", "polar bear")))
    assert len(dataset_info(source(root, classes=("cat", "dog", "polar bear", "zebra"))).classes) == 4


def test_a_data_set_can_be_described_from_its_training_split_alone(tmp_path: Path) -> None:
    write(tmp_path, {"train": GREYS["train"]})
    assert dataset_info(source(tmp_path)).classes == ("cat", "dog", "polar bear")


def test_an_unreadable_first_image_is_named(root: Path) -> None:
    (root / "train" / "cat" / "0.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"train/cat/0\.png cannot be read: not an image"):
        dataset_info(source(root))


def test_missing_folders_are_refused_with_the_settings_that_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"has no folder train\..*data\.train and data\.test"):
        dataset_info(source(tmp_path))
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"train holds no class folders"):
        dataset_info(source(tmp_path))
    write(tmp_path, {"train": GREYS["train"]})
    with pytest.raises(DataError, match=r"has no folder test or val or valid or validation"):
        load_dataset(source(tmp_path), "test")
    given = DataSource(name="imagefolder", train=str(tmp_path / "train"), test=str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"data\.test .*gone is not a folder"):
        load_dataset(given, "test")
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(DataError, match=r"Where is the image folder\? Set data\.root"):
        load_dataset("imagefolder", "train")

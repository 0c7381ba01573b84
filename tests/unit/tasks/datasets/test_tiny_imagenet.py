"""Check a miniature of the published tiny-ImageNet-200 folder: classes, labels, ids, and the corrupted archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.datasets import DataSource, dataset_info, load_dataset
from tasks.datasets.archives import load_archive
from tasks.environments import check_archive
from tasks.errors import DataError

# In the order of wnids.txt, which is not sorted.
WORDS = {"n02": "cardigan, Cardigan Welsh corgi", "n03": "cardigan", "n01": "goldfish, Carassius auratus"}
VALIDATION = ["n03", "n01", "n02", "n01", "n03", "n02", "n02", "n03", "n01", "n02", "n01", "n03"]


def save(path: Path, label: int, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (label * 60, number * 10, 90)).save(path, "JPEG", quality=95)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "tiny-imagenet-200"
    for wnid in WORDS:
        for number in range(2):
            save(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", int(wnid[1:]) - 1, number)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("0 0 9 9\n", encoding="utf-8")
    for number, wnid in enumerate(VALIDATION):
        save(root / "val" / "images" / f"val_{number}.JPEG", int(wnid[1:]) - 1, number)
    (root / "wnids.txt").write_text("\n".join(WORDS), encoding="utf-8")
    words = {**WORDS, "n09": "of no account"}
    (root / "words.txt").write_text("".join(f"{k}\t{v}\n" for k, v in words.items()), encoding="utf-8")
    lines = [f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n" for i, wnid in enumerate(VALIDATION)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines), encoding="utf-8")
    return root


@pytest.fixture
def source(folder: Path) -> DataSource:
    return DataSource(name="tinyimagenet", root=str(folder.parent))


def test_classes_are_english_names_in_the_order_of_sorted_ids(source: DataSource, folder: Path) -> None:
    info = dataset_info(source)
    assert info.classes == ("goldfish", "cardigan (n02)", "cardigan (n03)")
    assert (info.image_size, info.corruption_table) == (64, "tinyimagenet")
    # The folder itself may be the root.
    assert dataset_info(DataSource(name="tinyimagenet", root=str(folder))) == info


def test_the_labels_of_both_splits_match_their_images(source: DataSource) -> None:
    train, test = (load_dataset(source, split) for split in ("train", "test"))  # type: ignore[arg-type]
    assert train.labels_N.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(test.labels_N) == len(VALIDATION)
    for data in (train, test):
        reds = data.images(slice(None))[:, 30, 30, 0].astype(int)
        assert np.abs(reds - data.labels_N * 60).max() <= 3


def test_ids_of_the_validation_split_are_rows_of_the_corrupted_archive(
    source: DataSource, tmp_path: Path
) -> None:
    """Compare with Tiny-ImageNet-C, whose files are in folders of class ids; row i is the i-th of the sorted paths."""
    root = tmp_path / "Tiny-ImageNet-C"
    for severity in range(1, 6):
        for number, wnid in enumerate(VALIDATION):
            save(root / "fog" / str(severity) / wnid / f"val_{number}.JPEG", int(wnid[1:]) - 1, number)
    archive, test = load_archive(root), load_dataset(source, "test")
    check_archive(archive, test, needed=("fog",))
    corrupted = archive.images(test.image_ids_N, corruption="fog", severity=2)
    np.testing.assert_array_equal(corrupted, test.images(slice(None)))  # the archive has the clean images
    with pytest.raises(DataError, match=r"The labels of .* differ"):
        check_archive(
            archive, test.__class__(**{**vars(test), "image_ids_N": np.roll(test.image_ids_N, 1)}), needed=()
        )


def test_the_images_can_be_resized(source: DataSource) -> None:
    large = DataSource(name="tinyimagenet", root=source.root, image_size=128)
    assert load_dataset(large, "train").image_shape == (128, 128, 3)
    assert dataset_info(large).corruption_table == "imagenet"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "val/val_annotations.txt",
            "val_0.JPEG\tn77\t0\n",
            r"annotations\.txt, line 1: 'n77' is not in wnids\.txt",
        ),
        (
            "val/val_annotations.txt",
            "../../x.JPEG\tn01\t0\n",
            r"line 1: '\.\./\.\./x\.JPEG' is not the name of a file",
        ),
        ("val/val_annotations.txt", "", r"val_annotations\.txt is empty"),
        ("val/val_annotations.txt", None, r"val_annotations\.txt cannot be read"),
        ("val/images/val_3.JPEG", None, r"1 of 12 images .*val_3\.JPEG \(no such file\)"),
        ("words.txt", "n01\tgoldfish\n", r"words\.txt has no name for n02"),
        ("wnids.txt", "\n", r"wnids\.txt is empty"),
        ("wnids.txt", None, r"No tiny-ImageNet under .*Set data\.root"),
    ],
)
def test_a_missing_or_wrong_file_is_named(
    source: DataSource, folder: Path, name: str, content: str | None, message: str
) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_dataset(source, "test")


def test_a_class_without_training_images_is_named(source: DataSource, folder: Path) -> None:
    for path in (folder / "train" / "n02" / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"train/n02/images holds no images"):
        load_dataset(source, "train")


def test_the_lists_of_the_data_set_decide_which_images_are_read(source: DataSource, folder: Path) -> None:
    before = {split: load_dataset(source, split) for split in ("train", "test")}  # type: ignore[arg-type]
    assert [data.passed_over for data in before.values()] == [(), ()]
    save(folder / "train" / "n09" / "images" / "n09_0.JPEG", 0, 0)
    save(folder / "train" / "n01" / "images" / ".ipynb_checkpoints" / "n01_0.JPEG", 0, 0)
    save(folder / "val" / "images" / "val_99.JPEG", 0, 0)
    train, test = (load_dataset(source, split) for split in ("train", "test"))  # type: ignore[arg-type]
    assert (train.digest(), test.digest()) == (before["train"].digest(), before["test"].digest())
    assert train.passed_over == (
        f"Passed over in {folder}: 1 hidden (train/n01/images/.ipynb_checkpoints); "
        "1 not in wnids.txt (train/n09).",
    )
    assert test.passed_over == (
        f"Passed over in {folder}: 1 not in val_annotations.txt (val/images/val_99.JPEG).",
    )

"""Check which files below a folder belong to a data set: links are followed; ignored files are listed."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from metarepair.config.load import parse_config
from metarepair.data.workspace import load_surroundings
from tasks.datasets import ArrayDataset, DataSource, dataset_info, decoding, load_dataset
from tasks.datasets.archives import load_archive
from tasks.datasets.own_files import SYSTEM_FOLDERS, IgnoredFiles, is_hidden, iter_files
from tasks.errors import DataError


def save(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 1, 2)).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of three images in each split, and a folder elsewhere with two more."""
    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            for number in range(3):
                save(tmp_path / "images" / split / name / f"{number}.png", 10 * label + number)
    for number in range(2):
        save(tmp_path / "elsewhere" / f"m{number}.png", 100 + number)
    return tmp_path / "images"


def load(root: Path, split: Any = "train", **settings: Any) -> ArrayDataset:
    return load_dataset(DataSource(name="imagefolder", root=str(root), **settings), split)


def shades(data: ArrayDataset) -> list[int]:
    """The red values of the images, in the order of their ids."""
    reds: list[int] = data.images(np.argsort(data.image_ids_N))[:, 0, 0, 0].tolist()
    return reds


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", *SYSTEM_FOLDERS, "below/.thumbs", "below/.a/b"])
def test_hidden_folders_are_ignored_at_any_depth_and_listed(root: Path, folder: str) -> None:
    before = load(root)
    assert before.passed_over == ()
    save(root / "train" / "cat" / folder / "0-checkpoint.png", 99)
    after = load(root)
    assert (after.digest(), shades(after)) == (before.digest(), shades(before))
    (note,) = after.passed_over
    assert note.startswith(f"Passed over in {root / 'train'}: 1 hidden (cat/")


def test_hidden_names_are_distinguished_from_ordinary_ones() -> None:
    assert all(map(is_hidden, (".a", "._x.jpg", ".ipynb_checkpoints", *SYSTEM_FOLDERS)))
    assert not any(map(is_hidden, ("a.b", "_background_noise_", "x.jpg", "a")))


def test_a_linked_folder_is_followed_as_torchvision_does(root: Path) -> None:
    (root / "train" / "cat" / "more").symlink_to(root.parent / "elsewhere")
    data = load(root)
    assert shades(data) == [0, 1, 2, 100, 101, 10, 11, 12]
    assert len(data.labels_N) == len(ImageFolder(str(root / "train")))
    assert data.passed_over == ()


def test_links_may_be_files_classes_and_splits_and_the_root(root: Path) -> None:
    (root / "train" / "cat" / "linked.png").symlink_to(root.parent / "elsewhere" / "m0.png")
    (root / "train" / "fox").symlink_to(root.parent / "elsewhere")
    shutil.move(root / "test", root.parent / "moved")
    (root / "test").symlink_to(root.parent / "moved")
    (root.parent / "link").symlink_to(root)
    data = load(root.parent / "link")
    assert data.classes == ("cat", "dog", "fox")
    assert shades(data) == [0, 1, 2, 100, 10, 11, 12, 100, 101]
    assert shades(load(root.parent / "link", "test", classes=("cat", "dog"))) == [0, 1, 2, 10, 11, 12]


def test_an_image_reached_by_two_links_is_two_rows(root: Path) -> None:
    for name in ("one", "two"):
        (root / "train" / "cat" / name).symlink_to(root.parent / "elsewhere")
    assert shades(load(root))[:7] == [0, 1, 2, 100, 101, 100, 101]
    assert len(ImageFolder(str(root / "train"))) == 10


@pytest.mark.parametrize("target", [".", "..", "../..", "../../.."])
def test_a_link_to_a_folder_above_is_ignored_and_listed(root: Path, target: str) -> None:
    (root / "train" / "cat" / "deep").mkdir()
    (root / "train" / "cat" / "deep" / "up").symlink_to(target, target_is_directory=True)
    data = load(root)
    assert shades(data) == [0, 1, 2, 10, 11, 12]
    assert data.passed_over == (
        f"Passed over in {root / 'train'}: 1 linked to a folder above (cat/deep/up).",
    )


def test_two_classes_that_link_to_each_other_are_listed_without_a_loop(root: Path) -> None:
    (root / "train" / "cat" / "x").symlink_to(root / "train" / "dog")
    (root / "train" / "dog" / "y").symlink_to(root / "train" / "cat")
    data = load(root)
    assert shades(data) == [0, 1, 2, 10, 11, 12, 10, 11, 12, 0, 1, 2]
    assert "2 linked to a folder above (cat/x/y, dog/y/x)" in data.passed_over[0]


def test_a_class_folder_that_links_to_its_own_split_holds_no_images(root: Path) -> None:
    (root / "train" / "all").symlink_to(root / "train")
    with pytest.raises(DataError, match=r"train/all holds no images .*1 linked to a folder above \(all\)"):
        load(root)


@pytest.mark.parametrize("limit", [decoding.MAPPED_BYTES, 100])
def test_a_link_to_an_image_that_is_gone_is_named(
    root: Path, limit: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(decoding, "MAPPED_BYTES", limit)
    monkeypatch.setattr(decoding, "cache_folder", lambda: tmp_path / "cache")
    (root / "train" / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(DataError, match=r"cat/gone\.png (\(no such file\)|cannot be read \(No such file)"):
        load(root)


@pytest.mark.parametrize("path", ["train/fox", "train/cat/more", "train/cat/deep/notes.txt", "test"])
@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_a_broken_link_is_refused_by_name(root: Path, path: str, target: str) -> None:
    shutil.copytree(root / "test", root / "val")
    shutil.rmtree(root / "test")
    split = "test" if path == "test" else "train"
    load(root, split)
    link = root / path
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(link if target == "itself" else root / target)
    reason = "Too many levels of symbolic links" if target == "itself" else "No such file or directory"
    with pytest.raises(DataError, match=rf"{path} is a link to .*, which cannot be reached \({reason}\)"):
        load(root, split)


def test_a_hidden_broken_link_is_ignored(root: Path) -> None:
    for folder in (root / "train", root / "train" / "cat"):
        (folder / ".gone").symlink_to(root / "nowhere")
    assert load(root).passed_over == (f"Passed over in {root / 'train'}: 2 hidden (.gone, cat/.gone).",)


@pytest.mark.parametrize("name", ["pipe.png", "pipe.txt"])
def test_a_pipe_is_ignored_and_listed(root: Path, name: str) -> None:
    # List the files only: opening the pipe to read it would wait forever.
    os.mkfifo(root / "train" / "cat" / name)
    (root / "train" / "cat" / f"linked-{name}").symlink_to(root / "train" / "cat" / name)
    passed = IgnoredFiles(root)
    found = iter_files(root / "train" / "cat", (".png",), passed)
    assert [path.name for path in found] == ["0.png", "1.png", "2.png"]
    assert passed.notes() == (
        f"Passed over in {root}: 2 neither a file nor a folder (train/cat/linked-{name}, train/cat/{name}).",
    )


def test_files_of_a_folder_come_before_those_below_it_sorted_by_name(tmp_path: Path) -> None:
    names = ["b.png", "a/z.png", "a-b/1.png", "a/deep/0.png", "A.PNG", "a.png", "x.jpg/1.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = iter_files(tmp_path, (".png",), IgnoredFiles(tmp_path))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "A.PNG",
        "a.png",
        "b.png",
        "a/z.png",
        "a/deep/0.png",
        "a-b/1.png",
        "x.jpg/1.png",
    ]


def test_a_folder_that_cannot_be_listed_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "train" / "cat" / "locked").mkdir()
    whole = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cat/locked cannot be listed \(Permission denied\)"):
        load(root)


def test_a_class_with_only_hidden_images_is_refused_and_they_are_listed(root: Path) -> None:
    save(root / "train" / "fox" / ".ipynb_checkpoints" / "0.png")
    (root / "train" / "fox" / "Thumbs.db").touch()
    with pytest.raises(
        DataError, match=r"fox holds no images .*remove it\. Passed over .*1 hidden .*1 with another suffix"
    ):
        load(root)


def test_ignored_files_are_counted_and_the_first_ones_named(root: Path) -> None:
    for number in range(5):
        (root / "train" / "cat" / f"{number}.txt").touch()
    (root / "train" / "labels.csv").touch()
    (root / "train" / "notes.md").touch()
    (root / "val" / "cat").mkdir(parents=True)
    assert load(root).passed_over == (
        f"Passed over in {root / 'train'}: 2 outside the class folders (labels.csv, notes.md); "
        "5 with another suffix (cat/0.txt, cat/1.txt, cat/2.txt, …).",
    )
    assert load(root, "test").passed_over == (
        f"Passed over in {root}: 1 beside test/, which is the test split (val).",
    )


def test_a_run_logs_ignored_files_once_and_its_inputs_stay_the_same(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = {"name": "imagefolder", "root": str(root), "image_size": 32}
    model = {"name": "resnet8_cifar", "weights": "shipped:resnet8_cifar10"}
    classes = [f"class{i}" for i in range(8)]
    values = {"name": "a", "device": "cpu", "mining": {"experiences": ["snow"]}, "model": model}
    config = parse_config(values | {"data": source | {"classes": ["cat", "dog", *classes]}})
    before = load_surroundings(config, notes=True).inputs()
    assert caplog.messages == []
    (root / "train" / "cat" / "notes.txt").touch()
    (root / "train" / ".cache").mkdir()
    load_surroundings(config).inputs()  # as a worker does
    assert caplog.messages == []
    here = load_surroundings(config, notes=True)
    assert here.inputs() == here.inputs() == before
    here.split("train")
    assert caplog.messages == [
        f"Passed over in {root / 'train'}: 1 hidden (.cache); 1 with another suffix (cat/notes.txt)."
    ]


@pytest.mark.parametrize("name", ["cifar10_sample"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_shipped_sample_has_no_ignored_files(name: str, split: Any) -> None:
    assert load_dataset(name, split).passed_over == ()


def test_cifar_lists_the_layouts_and_arrays_that_it_does_not_read(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    images, labels = np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int64)
    np.savez(tmp_path / "cifar10" / "test.npz", images=images, labels=labels, fine=labels)
    (tmp_path / "cifar10" / "cifar10_test_webp.zip").touch()
    data = load_dataset(DataSource(name="cifar10", root=str(tmp_path)), "test")
    assert data.passed_over == (
        f"Passed over in {tmp_path / 'cifar10' / 'test.npz'}: 1 not named images or labels (fine).",
        f"Passed over in {tmp_path}: 1 beside test.npz, which is read (cifar10/cifar10_test_webp.zip).",
    )
    assert replace(data, passed_over=()).digest() == data.digest()


def write_archive(root: Path) -> Path:
    for name in ("fog", "snow"):
        for severity in range(1, 6):
            for wnid in ("n01", "n02"):
                save(root / name / str(severity) / wnid / "val_0.JPEG", 9)
    return root


def test_hidden_and_misplaced_files_of_an_archive_are_ignored_and_listed(tmp_path: Path) -> None:
    plain = load_archive(write_archive(tmp_path / "plain"))
    assert plain.passed_over == ()
    root = write_archive(tmp_path / "more")
    save(root / "fog" / "1" / ".ipynb_checkpoints" / "val_0.JPEG")
    (root / "fog" / "2" / "n01" / "._val_0.JPEG").touch()
    save(root / "fog" / "3" / "val_9.JPEG")
    (root / "fog" / "6").mkdir()
    (root / "README.txt").touch()
    (root / "__MACOSX").mkdir()
    found = load_archive(root)
    assert found.digest == plain.digest
    assert found.labels_N.tolist() == plain.labels_N.tolist() == [0, 1]
    assert found.passed_over == (
        f"Passed over in {root}: 1 not named after a corruption (README.txt); 3 hidden (__MACOSX, "
        "fog/1/.ipynb_checkpoints, fog/2/n01/._val_0.JPEG); 1 not named after a severity (fog/6); "
        "1 not in a class folder (fog/3/val_9.JPEG).",
    )


def test_a_broken_link_in_place_of_a_corruption_of_an_archive_is_refused(tmp_path: Path) -> None:
    root = write_archive(tmp_path / "archive")
    (root / "frost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"frost is a link to .*nowhere, which cannot be reached"):
        load_archive(root)


def test_an_archive_of_only_hidden_images_is_refused(tmp_path: Path) -> None:
    for severity in range(1, 6):
        save(tmp_path / "fog" / str(severity) / ".n01" / "val_0.JPEG")
    with pytest.raises(DataError, match=r"fog/1 holds no images <class>/<file> \(\.jpeg"):
        load_archive(tmp_path)


def test_an_array_of_an_archive_that_is_not_a_corruption_is_ignored_and_listed(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(10, np.int64))
    for name in ("fog", "fogs", "._fog"):
        np.save(tmp_path / f"{name}.npy", np.zeros((10, 32, 32, 3), np.uint8))
    found = load_archive(tmp_path)
    assert found.corruptions == ("fog",)
    assert found.passed_over == (
        f"Passed over in {tmp_path}: 1 hidden (._fog.npy); 1 not named after a corruption (fogs.npy).",
    )


def test_a_file_in_place_of_an_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "CIFAR-10-C.tar"
    path.touch()
    with pytest.raises(DataError, match=r"CIFAR-10-C\.tar is not a folder\. Give the one"):
        load_archive(path)


def test_the_image_size_is_not_taken_from_a_hidden_image(root: Path) -> None:
    Image.new("RGB", (32, 32)).save(root / "train" / "cat" / ".0.png")
    assert dataset_info(DataSource(name="imagefolder", root=str(root))).image_size == 8


def test_splits_of_different_sizes_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    for split, size in (("train", 48), ("test", 32)):
        images = np.zeros((10, size, size, 3), np.uint8)
        np.savez(tmp_path / "cifar10" / f"{split}.npz", images=images, labels=np.arange(10))
    values = {"name": "a", "device": "cpu", "mining": {"experiences": ["snow"]}}
    config = parse_config(values | {"data": {"name": "cifar10", "root": str(tmp_path)}})
    with pytest.raises(DataError, match="are 48 x 48 pixels, the test images 32 x 32"):
        load_surroundings(config).inputs()

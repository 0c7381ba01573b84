"""Check that a listing is decoded into one array, that bad images are named, and that a large array is mapped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.datasets import ArrayDataset, DataSource, decoding, load_dataset
from tasks.datasets.decoding import rows_by_class
from tasks.errors import DataError
from tasks.storage.paths import CACHE_VARIABLE


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_rows_cycle_through_the_classes(labels: list[int]) -> None:
    labels_N = np.array(labels)
    order = rows_by_class(labels_N)
    assert sorted(order.tolist()) == list(range(len(labels)))
    seen: dict[int, int] = {}
    ranks = []
    for place in order:
        label = labels[place]
        assert place > seen.get(label, -1)  # the order within each class is kept
        ranks.append(sum(labels[i] == label for i in range(place)))
        seen[label] = int(place)
    assert ranks == sorted(ranks)
    head = {labels[i] for i in order[: len(set(labels))]}
    assert head == set(labels)


def colour(label: int, number: int) -> tuple[int, int, int]:
    return label * 40, number * 10, 200 - number


@pytest.fixture
def source(tmp_path: Path) -> DataSource:
    """Three classes with 5, 2 and 1 training images, each of a unique colour; one test image of each."""
    for split, counts in (("train", (5, 2, 1)), ("test", (1, 1, 1))):
        for label, count in enumerate(counts):
            folder = tmp_path / "data" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), colour(label, number)).save(folder / f"{number}.png")
    return DataSource(name="imagefolder", root=str(tmp_path / "data"))


def check(data: ArrayDataset) -> None:
    assert data.labels_N.tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
    assert data.image_ids_N.tolist() == [0, 5, 7, 1, 6, 2, 3, 4]
    numbers = [0, 0, 0, 1, 1, 2, 3, 4]
    assert [tuple(image[3, 4]) for image in data.images(slice(None))] == [
        colour(label, number) for label, number in zip(data.labels_N.tolist(), numbers, strict=True)
    ]


def test_every_image_is_in_its_row_for_any_batch_size(
    source: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(load_dataset(source, "train"))
    monkeypatch.setattr("tasks.datasets.image_folder.BATCH", 3)
    check(load_dataset(source, "train"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def mapped(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of arrays, with a limit so low that every array is mapped."""
    monkeypatch.setattr(decoding, "MAPPED_BYTES", 100)
    return cache


def test_a_small_array_is_kept_only_in_memory(source: DataSource, cache: Path) -> None:
    load_dataset(source, "train")
    assert not cache.exists()


def test_a_large_array_is_mapped_and_equal_and_decoded_once(
    source: DataSource, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = load_dataset(source, "train")
    monkeypatch.setattr(decoding, "MAPPED_BYTES", 8 * 8 * 8 * 3 - 1)
    large = load_dataset(source, "train")
    check(large)
    assert isinstance(large.images_NHWC.base, np.memmap)
    assert large.known_digest == large.digest() == small.digest()
    monkeypatch.setattr(decoding, "decode_image", None)  # nothing is decoded again
    monkeypatch.setattr(decoding, "native_size", lambda _: 8)
    again = load_dataset(source, "train")
    check(again)
    assert again.digest() == small.digest()
    assert again.head(3).digest() == small.head(3).digest() != small.digest()
    assert again.head(100).known_digest == again.known_digest
    assert len(list(cache.iterdir())) == 2


def test_a_changed_file_is_decoded_again(source: DataSource, mapped: Path, tmp_path: Path) -> None:
    before = load_dataset(source, "train")
    path = tmp_path / "data" / "train" / "class2" / "0.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path)
    os.utime(path, ns=(1, 1))
    after = load_dataset(source, "train")
    assert after.digest() != before.digest()
    assert after.images(slice(None))[2, 0, 0].tolist() == [1, 2, 3]
    assert before.images(slice(None))[2, 0, 0].tolist() == list(colour(2, 0))


def test_an_incomplete_array_is_not_stored(source: DataSource, mapped: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "train" / "class1" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png"):
        load_dataset(source, "train")
    assert list(mapped.iterdir()) == []


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_a_damaged_array_is_named(source: DataSource, mapped: Path, suffix: str) -> None:
    load_dataset(source, "train")
    (path,) = mapped.glob(f"*{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"\.npy, or .*\.json beside it, cannot be read.*Delete both"):
        load_dataset(source, "train")


def test_an_array_without_its_json_file_is_made_again(source: DataSource, mapped: Path) -> None:
    load_dataset(source, "train")
    (note,) = mapped.glob("*.json")
    content = json.loads(note.read_text(encoding="utf-8"))
    note.unlink()
    check(load_dataset(source, "train"))
    assert json.loads(note.read_text(encoding="utf-8")) == content


def test_unreadable_images_are_counted_and_named(source: DataSource, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "train" / "class0"
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[:50])
    for number in (2, 3, 4):
        (folder / f"{number}.png").write_text("words", encoding="utf-8")
    with pytest.raises(DataError) as error:
        load_dataset(source, "train")
    message = str(error.value)
    assert message.startswith("4 of 8 images of the train split of imagefolder cannot be used: ")
    assert f"{folder / '1.png'} (truncated or not an image" in message
    assert f"{folder / '2.png'} (not an image)" in message
    assert "; and 1 more. Correct or remove them." in message


def test_decoding_stops_early_after_enough_bad_images(
    source: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path / "data" / "train").rglob("[1-4].png"):
        path.write_bytes(b"")
    monkeypatch.setattr("tasks.datasets.image_folder.BATCH", 2)
    monkeypatch.setattr(decoding, "_ENOUGH", 2)
    with pytest.raises(DataError, match="3 of 4 images"):
        load_dataset(source, "train")


def test_several_sizes_are_refused_by_name_unless_one_is_set(source: DataSource, tmp_path: Path) -> None:
    Image.new("RGB", (10, 8), (9, 9, 9)).save(tmp_path / "data" / "train" / "class1" / "1.png")
    with pytest.raises(
        DataError, match=r"class1/1\.png \(10 x 8 px, the first image has 8 x 8: set data\.image_size"
    ):
        load_dataset(source, "train")
    sized = DataSource(name="imagefolder", root=source.root, image_size=8)
    data = load_dataset(sized, "train")
    assert data.images_NHWC.shape == (8, 8, 8, 3)
    assert np.unique(data.images(slice(4, 5))).tolist() == [9]
    assert load_dataset(
        DataSource(name="imagefolder", root=source.root, image_size=16), "test"
    ).image_shape == (
        16,
        16,
        3,
    )


def test_oblong_images_without_a_set_size_are_refused(source: DataSource, tmp_path: Path) -> None:
    for path in (tmp_path / "data").rglob("*.png"):
        Image.new("RGB", (12, 8)).save(path)
    with pytest.raises(DataError, match=r"class0/0\.png is 12 x 8 px.*Set data\.image_size"):
        load_dataset(source, "test")

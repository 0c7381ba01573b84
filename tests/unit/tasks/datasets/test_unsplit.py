"""Check how clean images without splits of their own are split, in each form, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from metarepair.config.load import parse_config
from metarepair.data.workspace import Surroundings, load_surroundings
from tasks.datasets import (
    DataSource,
    check_folders,
    count_images,
    dataset_info,
    labelled_images,
    load_dataset,
)
from tasks.errors import ConfigError, DataError
from tasks.splits import JUDGE, LEARN
from tasks.splits.digests import pixel_digests

TEST = load_dataset("cifar10_sample", "test")
CLASSES = TEST.classes
COUNT = 120
SPLITS = ("train", "select", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METAREPAIR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def save(path: Path, image_HWC: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_HWC).save(path)
    return path


def folders(root: Path) -> str:
    for row in range(COUNT):
        save(root / CLASSES[TEST.labels_N[row]] / f"{row:03d}.png", TEST.images_NHWC[row])
    return str(root)


def rows_file(root: Path, *, group_of: int = 1, lines: bool = False) -> str:
    """Write a CSV or JSON Lines file; `group_of` images in a row share a group."""
    folders(root)
    rows = [
        {"path": f"{CLASSES[TEST.labels_N[row]]}/{row:03d}.png", "label": CLASSES[TEST.labels_N[row]]}
        | ({"group": f"day {row // group_of}"} if group_of > 1 else {})
        for row in range(COUNT)
    ]
    path = root / ("clean.jsonl" if lines else "clean.csv")
    with path.open("w", newline="", encoding="utf-8") as stream:
        if lines:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def table(root: Path) -> str:
    images = []
    for row in range(COUNT):
        content = io.BytesIO()
        Image.fromarray(TEST.images_NHWC[row]).save(content, "PNG")
        images.append(content.getvalue())
    root.mkdir()
    labels = [CLASSES[label] for label in TEST.labels_N[:COUNT]]
    pa.parquet.write_table(pa.table({"image": images, "label": labels}), root / "all.parquet")
    return str(root)


def source(root: str, **settings: object) -> DataSource:
    return DataSource(name="images", root=root, **settings)


FORMS = {
    "folders": folders,
    "csv": rows_file,
    "lines": lambda root: rows_file(root, lines=True),
    "table": table,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_image_is_in_one_split(tmp_path: Path, form: str) -> None:
    given = source(FORMS[form](tmp_path / "clean"))
    assert dataset_info(given).classes == tuple(sorted(CLASSES))
    assert dataset_info(given).image_size == 32
    check_folders(given)
    found = {split: load_dataset(given, split) for split in SPLITS}
    sizes = {split: len(data.labels_N) for split, data in found.items()}
    assert sum(sizes.values()) == COUNT
    assert sizes["select"] == pytest.approx(COUNT / 4, abs=3)
    assert sizes["test"] == pytest.approx(COUNT / 4, abs=3)
    assert {split: count_images(given, split)[0] for split in SPLITS} == sizes
    digests = np.concatenate([pixel_digests(found[split].images_NHWC) for split in SPLITS])
    assert set(digests.tolist()) == set(pixel_digests(TEST.images_NHWC[:COUNT]).tolist())
    label_of = dict(
        zip(pixel_digests(TEST.images_NHWC[:COUNT]).tolist(), TEST.labels_N[:COUNT].tolist(), strict=True)
    )
    for data in found.values():
        for digest, label in zip(pixel_digests(data.images_NHWC).tolist(), data.labels_N, strict=True):
            assert data.classes[label] == CLASSES[label_of[digest]]


@pytest.mark.parametrize("damage", ["text", "npz", "other hashes", "fewer"])
def test_the_split_is_always_the_same(tmp_path: Path, cache: Path, damage: str) -> None:
    given = source(folders(tmp_path / "clean"))
    before = {split: load_dataset(given, split).digest() for split in SPLITS}
    (kept,) = cache.rglob("*hashes*")
    hashes = np.load(kept)
    with kept.open("wb") as stream:
        if damage == "text":
            stream.write(b"no array")
        elif damage == "npz":
            np.savez(stream, a=hashes)
        else:
            np.save(stream, np.zeros_like(hashes) if damage == "other hashes" else hashes[1:])
    assert {split: load_dataset(given, split).digest() for split in SPLITS} == before


@pytest.mark.parametrize("mapped", [False, True])
def test_groups_and_near_duplicates_stay_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    if mapped:
        monkeypatch.setattr("tasks.datasets.decoding.MAPPED_BYTES", 0)
    path = Path(rows_file(tmp_path / "clean", group_of=4))
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        for row in range(0, COUNT, 4):  # copies in a group of their own
            label = CLASSES[TEST.labels_N[row]]
            brighter = np.clip(TEST.images_NHWC[row] * 0.97, 0, 255).astype(np.uint8)
            save(path.parent / label / f"copy{row}.png", brighter)
            writer.writerow([f"{label}/copy{row}.png", label, f"copy of {row}"])
    given = source(str(path))
    split_of = {}
    for split in SPLITS:
        for digest in pixel_digests(load_dataset(given, split).images_NHWC).tolist():
            split_of[digest] = split
    digests = pixel_digests(TEST.images_NHWC[:COUNT]).tolist()
    for start in range(0, COUNT, 4):
        assert len({split_of[digest] for digest in digests[start : start + 4]}) == 1
        row = TEST.images_NHWC[start]
        copy = pixel_digests(np.clip(row * 0.97, 0, 255).astype(np.uint8)[None])[0]
        assert split_of[int(copy)] == split_of[digests[start]]


def test_a_change_of_groups_is_another_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.datasets.decoding.MAPPED_BYTES", 0)
    path = rows_file(tmp_path / "clean", group_of=4)
    before = load_dataset(source(path), "train").digest()
    rows_file(tmp_path / "clean", group_of=3)
    assert load_dataset(source(path), "train").digest() != before


def test_repairs_select_by_images_that_nothing_learns_from(tmp_path: Path) -> None:
    here = surroundings(folders(tmp_path / "clean"))
    clean = here.clean()
    learn, select = (
        set(pixel_digests(images).tolist()) for images in (clean.images_NHWC, clean.held_out.images_NHWC)
    )
    assert len(learn) == len(here.split("train").labels_N)
    assert select == set(pixel_digests(here.split("select").images_NHWC).tolist())
    assert not learn & select
    sample = clean.sample(COUNT, np.random.default_rng(0))
    assert set(pixel_digests(sample.images_NHWC).tolist()) == learn
    assert {"train", "select", "test"} <= set(here.inputs())
    assert set(here.clean_splits()) == {"test", "training", "selecting"}


def test_groups_of_test_images_judge_whole(tmp_path: Path) -> None:
    here = surroundings(rows_file(tmp_path / "clean", group_of=4))
    parts, test = here.test_parts(), here.split("test")
    assert test.groups_N is not None
    judges = set(test.groups_N[parts == JUDGE].tolist())
    assert judges
    assert not judges & set(test.groups_N[parts == LEARN].tolist())
    environment = here.environment("test", "fog")
    np.testing.assert_array_equal(environment.groups_N, test.groups_N)


def test_a_table_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = rows_file(tmp_path / "clean"), []
    rows = labelled_images.iter_named_rows
    monkeypatch.setattr(labelled_images, "iter_named_rows", lambda p: (opened.append(p), rows(p))[1])
    for split in SPLITS:
        load_dataset(source(path), split)
    assert len(opened) == 2  # for the classes, and for the images
    Path(path).write_text(Path(path).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    load_dataset(source(path), "train")
    assert len(opened) == 4


def surroundings(root: str) -> Surroundings:
    config = parse_config(
        {
            "name": "clean",
            "targets": ["fog"],
            "mining": {"experiences": ["snow"]},
            "data": {"name": "images", "root": root, "classes": list(CLASSES)},
            "device": "cpu",
        }
    )
    return load_surroundings(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cifar10", "group_column": "day"}, "data.group_column is given"),
        ({"name": "imagefolder", "group_column": "day"}, "it is for images"),
        ({"name": "images", "train": "a", "test": "b"}, "data.train is given, but images has its own"),
    ],
)
def test_settings_that_do_not_belong_together(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataSource(**settings)


def test_only_these_images_have_some_to_select_by() -> None:
    with pytest.raises(
        ConfigError, match="split='select' is not a split of cifar10_sample; give 'train' or 'test'"
    ):
        load_dataset("cifar10_sample", "select")


def refused(root: str | Path, **settings: object) -> str:
    with pytest.raises(DataError) as error:
        load_dataset(source(str(root), **settings), "train")
    return str(error.value)


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    assert "data.root" in refused(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "holds no class folders" in refused(tmp_path / "empty")
    save(tmp_path / "few" / "cat" / "0.png", TEST.images_NHWC[0])
    save(tmp_path / "few" / "dog" / "1.png", TEST.images_NHWC[1])
    assert "its 2 images form 2 groups. That is too few to judge by some" in refused(tmp_path / "few")
    save(tmp_path / "sizes" / "cat" / "0.png", TEST.images_NHWC[0])
    save(tmp_path / "sizes" / "cat" / "1.png", TEST.images_NHWC[1][:20])
    assert "32 x 20 px" in refused(tmp_path / "sizes")
    folders(tmp_path / "damaged")
    next((tmp_path / "damaged").rglob("*.png")).write_bytes(b"no image")
    assert "1 of 120 images" in refused(tmp_path / "damaged")
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("path,label\na.png,0\n", encoding="utf-8")
    assert "Set data.classes to their names" in refused(numbers)
    assert "has no column 'day'" in refused(numbers, group_column="day", classes=CLASSES)
    assert "has no column 'file'" in refused(numbers, image_column="file", classes=CLASSES)
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    assert "is neither a folder nor a table" in refused(tmp_path / "notes.txt")
    surrogate = tmp_path / "s.jsonl"
    surrogate.write_text('{"path": "a\\ud800.png", "label": "cat"}\n', encoding="utf-8")
    assert "holds half of a pair of UTF-16" in refused(surrogate)
    surrogate.write_text('{"path": "a.png", "label": "cat", "group": "\\ud800"}\n', encoding="utf-8")
    assert "the group '\\ud800' is no text" in refused(surrogate)
    surrogate.write_text('{"path": "a.png", "label": " "}\n', encoding="utf-8")
    assert "Correct the label" in refused(surrogate)
    surrogate.write_text('{"path": "' + "a" * (1 << 20) + '"}\n', encoding="utf-8")
    assert "has more than 1,048,576 characters" in refused(surrogate)
    os.mkfifo(tmp_path / "pipe.parquet")
    assert "data.root" in refused(tmp_path / "pipe.parquet")
    assert "class folders, which have no columns" in refused(tmp_path / "sizes", group_column="day")
    save(tmp_path / "twice" / "cat" / "0.png", TEST.images_NHWC[0])
    save(tmp_path / "twice" / "dog" / "0.png", TEST.images_NHWC[0])
    said = refused(tmp_path / "twice")
    assert "the same image has two labels" in said
    assert "cat/0.png and " in said
    outside = tmp_path / "outside.csv"
    outside.write_text("path,label\n../a.png,cat\n", encoding="utf-8")
    assert refused(outside).endswith("Move the image there.")
    assert "data.image_column, data.label_column and data.group_column" in refused(
        outside, group_column="day"
    )
    columns = tmp_path / "columns.parquet"
    pa.parquet.write_table(pa.table({"a": [b"1"], "b": [b"2"], "label": ["cat"]}), columns)
    assert "Set data.image_column" in refused(columns)


def test_a_folder_of_class_folders_leads_to_this_form(tmp_path: Path) -> None:
    folders(tmp_path / "clean")
    with pytest.raises(DataError, match=r"set data\.name: images, which splits them"):
        load_dataset(DataSource(name="imagefolder", root=str(tmp_path / "clean")), "train")

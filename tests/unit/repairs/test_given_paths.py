"""Test that `repair()` reads folders and tables as the command line does, and repairs as with arrays of the same."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from metarepair import RepairConfig, Repaired, repair, save_images
from metarepair.data.given_images import collect_images
from small import bright_failures, deployed_of, small_net
from tasks.errors import ConfigError, DataError, UserError

MODEL = small_net()
CLASSES = ("cat", "dog", "ant")  # not in sorted order
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
QUICK = RepairConfig(repair={"episodes": 1, "tasks": 1}, task={"shots": 2}, inner={"steps": 1})


def by_class(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In the order in which class folders are listed: by the sorted names of the classes."""
    order = np.lexsort((np.array(CLASSES)[labels],))
    return images[order], labels[order]


IMAGES = bright_failures(36, 0, noise=40).images_NHWC
FOUND = deployed_of(MODEL).logits(IMAGES).argmax(1).numpy()
FAILURES = by_class(IMAGES, np.where(np.arange(36) % 3 == FOUND, (FOUND + 1) % 3, np.arange(36) % 3))
CLEAN = by_class(IMAGES, np.where(np.arange(36) % 9 < 3, np.arange(36) % 3, FOUND))


def folder(given: tuple[np.ndarray, np.ndarray], path: Path) -> Path:
    for number, (image, label) in enumerate(zip(*given, strict=True)):
        file = path / CLASSES[label] / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return path


def rows(given: tuple[np.ndarray, np.ndarray], path: Path, **columns: list[str]) -> list[dict[str, str]]:
    folder(given, path / "files")
    names = [CLASSES[label] for label in given[1]]
    return [
        {
            "path": f"files/{name}/{i:03}.png",
            "label": name,
            **{key: column[i] for key, column in columns.items()},
        }
        for i, name in enumerate(names)
    ]


def csv_file(given: tuple[np.ndarray, np.ndarray], path: Path, **columns: list[str]) -> Path:
    found = rows(given, path, **columns)
    with (path / "table.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    return path / "table.csv"


def json_lines(given: tuple[np.ndarray, np.ndarray], path: Path) -> Path:
    lines = [json.dumps(row) for row in rows(given, path)]
    (path / "table.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return path / "table.jsonl"


def names_in_parquet(given: tuple[np.ndarray, np.ndarray], path: Path) -> Path:
    return save_images((given[0], [CLASSES[label] for label in given[1]]), path / "table.parquet")


def numbers_in_parquet(given: tuple[np.ndarray, np.ndarray], path: Path) -> Path:
    return save_images(given, path / "table.parquet")


def call(failures: Any, **options: Any) -> Repaired:
    given = {"mean": MEAN, "std": STD, "config": QUICK} | options
    return repair(given.pop("model", MODEL), failures, **given)


def assert_equal(one: Repaired, other: Repaired) -> None:
    state = other.module.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in one.module.state_dict().items())
    assert any(not torch.equal(value, state[key]) for key, value in MODEL.state_dict().items())
    for name in ("validation_after", "rate", "episode", "clean_before", "clean_after"):
        assert getattr(one, name) == getattr(other, name)


@pytest.mark.parametrize("write", [folder, csv_file, json_lines, names_in_parquet, numbers_in_parquet])
def test_a_path_gives_the_repair_that_arrays_of_its_images_give(write: Any, tmp_path: Path) -> None:
    failures, clean = write(FAILURES, tmp_path / "failures"), write(CLEAN, tmp_path / "clean")
    found = call(str(failures), clean=clean, clean_training=clean, classes=CLASSES)
    assert_equal(found, call(FAILURES, clean=CLEAN, clean_training=CLEAN))
    assert found.clean_before == (deployed_of(MODEL).logits(CLEAN[0]).argmax(1).numpy() == CLEAN[1]).mean()


@pytest.mark.parametrize("named", ["clean", "clean_training"])
@pytest.mark.parametrize("write", [folder, csv_file, names_in_parquet])
def test_without_classes_the_sorted_names_of_the_clean_images_are_the_outputs(
    write: Any, named: str, tmp_path: Path
) -> None:
    of_sorted = np.array([sorted(CLASSES).index(name) for name in CLASSES])  # the number that each name gets
    model = copy.deepcopy(MODEL)
    for values in model[-1].parameters():
        values.data = values.data[np.argsort(of_sorted)]
    clean = write(CLEAN, tmp_path / "clean")
    found = call(folder(FAILURES, tmp_path / "failures"), model=model, **{named: clean})
    arrays = [(images, of_sorted[labels]) for images, labels in (FAILURES, CLEAN)]
    assert_equal(found, call(arrays[0], model=model, **{named: arrays[1]}))


def test_images_are_resized_only_if_a_size_is_given(tmp_path: Path) -> None:
    large = (FAILURES[0].repeat(2, 1).repeat(2, 2), FAILURES[1])
    Image.fromarray(large[0][0, :12]).save(folder(large, tmp_path) / CLASSES[large[1][0]] / "000.png")
    with pytest.raises(DataError, match=r"16 x 12 px, but a DNN takes squares.*image_size"):
        call(tmp_path, classes=CLASSES)
    found = collect_images(tmp_path, name="failures", classes=CLASSES, image_size=8)
    assert found.images_NHWC.shape == (36, 8, 8, 3)
    assert_equal(call(tmp_path, classes=CLASSES, image_size=8), call((found.images_NHWC, FAILURES[1])))


def test_a_group_is_learned_from_or_held_out_as_a_whole(tmp_path: Path) -> None:
    groups = [f"day {i % 5}" for i in range(36)]
    found = collect_images(csv_file(FAILURES, tmp_path, group=groups), name="failures", classes=CLASSES)
    np.testing.assert_array_equal(found.image_ids_N, np.arange(36) % 5)
    one = csv_file(FAILURES, tmp_path / "one", group=["day"] * 36)
    with pytest.raises(DataError, match="failures has one image, or images of one group"):
        call(one, classes=CLASSES)


def test_grey_images_of_a_folder_are_grey_for_one_channel(tmp_path: Path) -> None:
    grey = (FAILURES[0][..., 0], FAILURES[1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    options: dict[str, Any] = {"model": model, "mean": (0.5,), "std": (0.5,)}
    found = collect_images(folder(grey, tmp_path / "grey"), name="failures", channels=1, classes=CLASSES)
    np.testing.assert_array_equal(found.images_NHWC, grey[0][..., None])
    assert "finetune" in call(tmp_path / "grey", classes=CLASSES, **options).method
    with pytest.raises(DataError, match=r"failures .*colour has colour images, but mean and std have one"):
        call(folder(FAILURES, tmp_path / "colour"), classes=CLASSES, **options)


def test_files_that_are_passed_over_become_a_note(tmp_path: Path) -> None:
    (folder(FAILURES, tmp_path) / "cat" / "read me.txt").write_text("x", encoding="utf-8")
    notes = call(tmp_path, classes=CLASSES).notes
    assert any("Passed over" in note and "read me.txt" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({}, ConfigError, r"failures .*photos names its classes: give classes, .*in the order of the model"),
        (
            {"classes": ["cat", "bird", "ant"]},
            DataError,
            "has the class folder 'dog', which data.classes does not have",
        ),
        ({"classes": [*CLASSES, "bee"]}, ConfigError, "classes has 4 names, and the DNN has 3 outputs"),
        ({"classes": "cat,dog,ant"}, ConfigError, "classes='cat,dog,ant' is not a list of names"),
        ({"classes": 3}, ConfigError, "classes=3 is not a list of names"),
        ({"classes": ["cat", "dog", "cat"]}, ConfigError, "each class once"),
        ({"classes": CLASSES, "image_size": "8"}, ConfigError, "image_size='8' is not a number of pixels"),
        (
            {"classes": CLASSES, "clean": "s3://bucket/clean"},
            ConfigError,
            r"clean='s3://.*from a local folder",
        ),
        ({"clean": "nowhere"}, DataError, "clean .*nowhere does not exist. Give a folder of class folders"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(
    options: dict[str, Any], error: type[UserError], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        call(folder(FAILURES, tmp_path / "photos"), **options)


@pytest.mark.parametrize(
    ("path", "error", "says"),
    [
        ("", ConfigError, "a path is empty"),
        (
            "nowhere",
            DataError,
            "failures .*nowhere does not exist. Give a folder of class folders, or a table",
        ),
        ("s3://bucket/failures.parquet", ConfigError, "labelled images are read from a local folder or file"),
        ("x" * 300, ConfigError, "cannot be looked up"),
        ("a\0b", DataError, "does not exist"),
        (Path(__file__), DataError, "is neither a folder nor a table"),
    ],
)
def test_a_path_that_names_no_images_is_refused(path: Any, error: type[UserError], says: str) -> None:
    with pytest.raises(error, match=says):
        call(path, classes=CLASSES)


def test_a_row_or_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    table = csv_file(FAILURES, tmp_path)
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace(",dog", ",dgo", 1), encoding="utf-8")
    with pytest.raises(DataError, match="the label is 'dgo', which names no class; did you mean 'dog'"):
        call(table, classes=CLASSES)
    first = f"files/{CLASSES[FAILURES[1][0]]}/000.png"
    other = CLASSES[(FAILURES[1][0] + 1) % 3]
    table.write_text(f"{text}{first},{other}\n", encoding="utf-8")
    with pytest.raises(DataError, match="the same image has two labels"):
        call(table, classes=CLASSES)
    table.write_text(text, encoding="utf-8")
    (tmp_path / first).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"000\.png cannot be read: not an image"):
        call(table, classes=CLASSES)
    with pytest.raises(DataError, match=r"1 of 36 images of failures .*table\.csv cannot be used"):
        call(table, classes=CLASSES, image_size=8)

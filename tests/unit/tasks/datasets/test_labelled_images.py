"""Check that a user's labelled images are listed from folders and tables, and that wrong ones are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.datasets.labelled_images import ImageSource, list_images
from tasks.errors import DataError

CLASSES = ("cat", "dog", "7", "horse")


def write_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(path)
    return path


def source(location: Path, **changes: Any) -> ImageSource:
    return ImageSource(setting="environments.cam.images", location=location, **changes)


def listed(location: Path, **changes: Any) -> tuple[list[int], list[str] | None, list[str]]:
    found = list_images(source(location, **changes), CLASSES)
    names = [image.name for batch in found.batches() for image in batch]
    return found.labels_N.tolist(), None if found.groups is None else list(found.groups), names


def test_class_folders_may_lack_a_class(tmp_path: Path) -> None:
    write_image(tmp_path / "dog" / "a.png")
    write_image(tmp_path / "cat" / "deep" / "b.png")
    labels, groups, names = listed(tmp_path)
    assert labels == [0, 1]
    assert groups is None
    assert [Path(name).name for name in names] == ["b.png", "a.png"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_csv_file_gives_labels_by_name_and_by_number(tmp_path: Path, encoding: str, ending: str) -> None:
    rows = ["path,label,group,note", '"a, b.png",dog,mon,x', "ü/c.png,3,tue,", "", "d.png,7,mon,7 is a name"]
    (tmp_path / "t.csv").write_bytes(ending.join(rows).encode(encoding))
    labels, groups, names = listed(tmp_path / "t.csv")
    assert labels == [1, 3, 2]
    assert groups == ["mon", "tue", "mon"]
    assert names == ["a, b.png", "ü/c.png", "d.png"]


def test_columns_and_the_root_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("device,file,class\n1,x.png,cat\n", encoding="utf-8")
    (tmp_path / "photos").mkdir()
    columns = {"image_column": "file", "label_column": "class", "group_column": "device"}
    found = list_images(source(tmp_path / "t.csv", root=tmp_path / "photos", **columns), CLASSES)
    assert found.groups == ["1"]
    (batch,) = found.batches()
    assert batch[0].content == tmp_path / "photos" / "x.png"


def test_json_lines_give_the_same_as_csv(tmp_path: Path) -> None:
    lines = [{"path": "a.png", "label": "cat", "group": 1}, {"path": "b.png", "label": 3, "group": "two"}]
    text = "\n\n".join(map(json.dumps, lines))
    (tmp_path / "t.jsonl").write_text(text, encoding="utf-8-sig")
    assert listed(tmp_path / "t.jsonl") == ([0, 3], ["1", "two"], ["a.png", "b.png"])


def test_a_parquet_table_may_have_groups(tmp_path: Path) -> None:
    content = write_image(tmp_path / "a.png").read_bytes()
    table = pa.table({"image": [content, content], "label": ["dog", "horse"], "group": ["x", "y"]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert listed(tmp_path / "t.parquet")[:2] == ([1, 3], ["x", "y"])
    assert listed(tmp_path / "t.parquet", group_column="label")[1] == ["dog", "horse"]


REFUSED = {
    "label of no class": ("path,label\na.png,dgo\n", "names no class; did you mean 'dog'?"),
    "float label": ("path,label\na.png,1.0\n", "the label is '1.0', which names no class"),
    "negative label": ("path,label\na.png,-1\n", "the label is '-1', which names no class"),
    "label of 2^63": (f"path,label\na.png,{2**63}\n", "names no class"),
    "label one too large": ("path,label\na.png,4\n", "or give a number, 0 to 3"),
    "empty label": ("path,label\na.png,\n", "line 2: the label is ''"),
    "no label column": ("path,lable\na.png,dog\n", "no column 'label'; did you mean 'lable'?"),
    "no path column": ("file,label\na.png,dog\n", "no column 'path'"),
    "a column twice": ("path,label,label\na.png,dog,dog\n", "the column 'label' twice"),
    "too many values": ("path,label\na,b.png,dog\n", "3 values for 2 columns"),
    "no rows": ("path,label\n", "lists no images"),
    "nothing at all": ("", "lists no images"),
    "an empty path": ("path,label\n ,dog\n", "the path is ' '"),
    "a path above": ("path,label\n../a.png,dog\n", "leads out of"),
    "a path around": ("path,label\nx/../../a.png,dog\n", "leads out of"),
    "an absolute path": ("path,label\n/etc/passwd,dog\n", "leads out of"),
    "the folder itself": ("path,label\n.,dog\n", "leads out of"),
    "a null character": ("path,label\na\0.png,dog\n", "line"),
    "an empty group": ("path,label,group\na.png,dog,\n", "the group is ''"),
    "an open quote": ('path,label\n"a.png,dog\n', "cannot be read as CSV"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_csv_file_that_cannot_be_meant_is_refused(tmp_path: Path, name: str) -> None:
    content, says = REFUSED[name]
    path = tmp_path / "t.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as refused:
        list_images(source(path), CLASSES)
    assert says in str(refused.value)
    assert str(path) in str(refused.value) or "leads out" in says


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1]", "it is list, not an object"),
        ("{", "it is not JSON"),
        ('{"path": "a.png", "label": true}', "the label is 'True'"),
        ('{"path": "a.png", "label": 1.0}', "the label is '1.0'"),
        ('{"path": 3, "label": 1}', "the path is 3"),
        ('{"path": "a.png", "label": 1, "group": []}', "the group is []"),
        ("[" * 5000, "it is not JSON"),
    ],
)
def test_a_json_line_that_cannot_be_meant_is_refused(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "t.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(DataError) as refused:
        list_images(source(tmp_path / "t.jsonl"), CLASSES)
    assert says in str(refused.value)
    assert "line 1" in str(refused.value)


def test_links_that_leave_the_folder_are_refused_and_others_are_followed(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    write_image(outside / "secret.png")
    write_image(inside / "a.png")
    (inside / "folder").symlink_to(outside)
    (inside / "file.png").symlink_to(outside / "secret.png")
    (inside / "fine.png").symlink_to(inside / "a.png")
    table = inside / "t.csv"
    table.write_text("path,label\nfine.png,dog\n", encoding="utf-8")
    assert listed(table)[0] == [1]
    for name in ("folder/secret.png", "file.png", "folder/../a.png"):
        table.write_text(f"path,label\n{name},dog\n", encoding="utf-8")
        if name.endswith("../a.png"):
            assert listed(table)[0] == [1], "the path is read as it is written, without the link"
            continue
        with pytest.raises(DataError, match="leads out of"):
            listed(table)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _: None, "does not exist"),
        (lambda p: p.write_bytes(b"x"), "neither a folder nor a table"),
        (lambda p: write_image(p / "bird" / "a.png"), "the class folder 'bird'"),
        (lambda p: (p / "dog").mkdir(parents=True), "holds no images"),
        (lambda p: p.mkdir(), "holds no class folders"),
        (lambda p: write_image(p / "a.png"), "holds no class folders"),
    ],
)
def test_a_location_that_holds_no_labelled_images_is_refused(tmp_path: Path, make: Any, says: str) -> None:
    make(tmp_path / "given")
    with pytest.raises(DataError) as refused:
        list_images(source(tmp_path / "given"), CLASSES)
    assert says in str(refused.value)


def test_a_table_of_another_encoding_and_a_pipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("path,label\nü.png,dog\n".encode("utf-16"))
    with pytest.raises(DataError, match="not UTF-8"):
        list_images(source(tmp_path / "t.csv"), CLASSES)
    os.mkfifo(tmp_path / "p.csv")
    with pytest.raises(DataError, match="neither a folder nor a table"):
        list_images(source(tmp_path / "p.csv"), CLASSES)
    with pytest.raises(DataError, match=r"The root .* is not a folder"):
        list_images(source(tmp_path / "t.csv", root=tmp_path / "no"), CLASSES)
    (tmp_path / "g.csv").write_text("path,label\na.png,dog\n", encoding="utf-8")
    with pytest.raises(DataError, match="no column 'day'"):
        list_images(source(tmp_path / "g.csv", group_column="day"), CLASSES)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_is_listed_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name in ("t.csv", "t.jsonl"):
        (folder / name).write_text("path,label\n" * name.endswith("csv") + text, encoding="utf-8", newline="")
        said = ""
        try:
            labels = list_images(source(folder / name), CLASSES).labels_N
        except DataError as error:
            labels, said = [], str(error)
        assert len(labels) or str(folder) in said


@pytest.mark.soak
def test_a_million_rows_are_listed(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("w", encoding="utf-8") as stream:
        stream.write("path,label,group\n")
        for row in range(1_000_000):
            stream.write(f"day{row % 97}/{row}.jpg,{CLASSES[row % 4]},{row % 97}\n")
    found = list_images(source(tmp_path / "t.csv"), CLASSES)
    assert len(found.labels_N) == 1_000_000
    assert found.groups is not None
    assert found.groups[-1] == str(999_999 % 97)


def table_of(path: Path, groups: list[Any] | None) -> None:
    content = write_image(path.parent.parent / "a.png").read_bytes()
    columns: dict[str, Any] = {"image": [content, content], "label": ["dog", "horse"]}
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns if groups is None else columns | {"group": groups}), path)


@pytest.mark.parametrize("empty", [None, "", " "])
def test_an_image_of_a_parquet_table_without_a_group_is_refused(tmp_path: Path, empty: str | None) -> None:
    table_of(tmp_path / "tables" / "t.parquet", ["x", empty])
    with pytest.raises(DataError, match="row 2: the group is"):
        listed(tmp_path / "tables" / "t.parquet")


def test_a_group_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    table_of(tmp_path / "tables" / "t.parquet", [1.0, float("nan")])
    with pytest.raises(DataError, match="row 2: the group is nan"):
        listed(tmp_path / "tables" / "t.parquet")


def test_groups_in_some_parquet_tables_only_are_refused(tmp_path: Path) -> None:
    table_of(tmp_path / "tables" / "a.parquet", ["x", "y"])
    table_of(tmp_path / "tables" / "b.parquet", None)
    with pytest.raises(DataError, match=r"b\.parquet has no column 'group', but other tables"):
        listed(tmp_path / "tables")


def test_groups_in_later_json_lines_only_are_refused(tmp_path: Path) -> None:
    rows = [{"path": "a.png", "label": 1}, {"path": "b.png", "label": 1, "group": "x"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError, match="line 2: it has a group, and the first row has none"):
        listed(tmp_path / "t.jsonl")


def test_a_path_that_cannot_be_followed_is_listed_and_unreadable_later(tmp_path: Path) -> None:
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "folder").symlink_to("folder")
    names = ["circle.png", "folder/a.png", "x" * 5000, "x/" * 5000 + "a.png"]
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"{n},dog\n" for n in names), encoding="utf-8")
    assert listed(tmp_path / "t.csv")[2] == names


def test_a_path_with_a_nul_character_is_refused_with_that_reason(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label\na\0b.png,dog\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds a NUL character"):
        listed(tmp_path / "t.csv")

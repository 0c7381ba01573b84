"""Check tables of images in Parquet and Arrow, plain and as Hugging Face writes them, and errors that name rows."""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from PIL import Image

from tasks.datasets import DataSource, count_images, dataset_info, load_dataset
from tasks.errors import DataError


def png(number: int, size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (number, 0, 7)).save(stream, "PNG")
    return stream.getvalue()


def table(labels: Sequence[Any], *, image: str = "image", label: str = "label", first: int = 0) -> pa.Table:
    """A table with a row for each label; the red of an image is its number."""
    contents = [png(first + i) for i in range(len(labels))]
    return pa.table({image: pa.array(contents, pa.binary()), label: labels, "note": ["x"] * len(labels)})


def as_hugging_face(plain: pa.Table, names: Sequence[str]) -> pa.Table:
    """The table as Hugging Face writes it: a struct column, and the features in the schema's metadata."""
    structs = [{"bytes": content, "path": None} for content in plain["image"].to_pylist()]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    made = pa.table({"image": pa.array(structs, kind), "label": plain["label"], "thumb": plain["image"]})
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(path: Path, content: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(content, path, row_group_size=2)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(content, str(path))
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, content.schema) as writer:
            writer.write_table(content, max_chunksize=2)
    return path


def source(root: Path, **settings: Any) -> DataSource:
    return DataSource(name="parquet", root=str(root), **settings)


def by_id(data: Any) -> tuple[list[int], list[int]]:
    """Labels and red values of the images, in the order of their ids."""
    order = np.argsort(data.image_ids_N)
    return data.labels_N[order].tolist(), data.images(order)[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_columns_and_classes_are_read_from_the_files_of_hugging_face(tmp_path: Path, suffix: str) -> None:
    for number, part in enumerate(([2, 0, 1], [1, 1])):
        content = as_hugging_face(table(part, first=3 * number), ["cat", "dog", "fox"])
        write(tmp_path / "data" / f"train-0000{number}-of-00002{suffix}", content)
    write(
        tmp_path / "data" / f"validation-00000-of-00001{suffix}",
        as_hugging_face(table([0]), ["cat", "dog", "fox"]),
    )
    info = dataset_info(source(tmp_path))
    assert (info.classes, info.image_size) == (("cat", "dog", "fox"), 8)
    train = load_dataset(source(tmp_path), "train")
    assert by_id(train) == ([2, 0, 1, 1, 1], [0, 1, 2, 3, 4])
    assert train.classes == info.classes
    assert load_dataset(source(tmp_path), "test").labels_N.tolist() == [0]
    assert count_images(source(tmp_path), "train") == (5, 3)


@pytest.mark.parametrize("dictionary", [False, True])
def test_string_labels_of_the_training_split_define_the_classes(tmp_path: Path, dictionary: bool) -> None:
    for split, labels in (("train", ["fox", "cat", "fox", "dog"]), ("test", ["dog"])):
        content = table(labels)
        if dictionary:
            content = content.set_column(1, "label", content["label"].dictionary_encode())
        write(tmp_path / f"{split}.parquet", content)
    assert dataset_info(source(tmp_path)).classes == ("cat", "dog", "fox")
    assert by_id(load_dataset(source(tmp_path), "train"))[0] == [2, 0, 2, 1]
    assert by_id(load_dataset(source(tmp_path), "test"))[0] == [1]
    write(tmp_path / "test.parquet", table(["dog", "wolf"]))
    with pytest.raises(
        DataError, match=r"test\.parquet, row 1: the label is 'wolf'; there are 3 classes: cat, dog, fox"
    ):
        load_dataset(source(tmp_path), "test")


@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("label", ["", " ", "\t"])
def test_a_blank_label_is_refused_with_its_row(tmp_path: Path, label: str, dictionary: bool) -> None:
    write(tmp_path / "train-0.parquet", table(["fox", "cat"]))
    content = table(["fox", "cat", "fox", label, "cat"])  # in row groups of two
    if dictionary:
        content = content.set_column(1, "label", content["label"].dictionary_encode())
    write(tmp_path / "train-1.parquet", content)
    write(tmp_path / "test.parquet", table(["fox"]))
    said = rf"train-1\.parquet, row 3: the label is {re.escape(repr(label))}, which names no class\. Correct"
    with pytest.raises(DataError, match=said):
        dataset_info(source(tmp_path))
    with pytest.raises(DataError, match=r"train-1\.parquet, row 3: the label is"):
        load_dataset(source(tmp_path, classes=("cat", "fox")), "train")


def test_integer_labels_need_class_names_from_a_setting(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", table([1, 0, 1]))
    write(tmp_path / "test.parquet", table([0]))
    with pytest.raises(DataError, match=r"'label' are numbers.*Set data\.classes"):
        dataset_info(source(tmp_path))
    named = source(tmp_path, classes=("cat", "dog"))
    assert dataset_info(named).classes == ("cat", "dog")
    assert by_id(load_dataset(named, "train")) == ([1, 0, 1], [0, 1, 2])


@pytest.mark.parametrize("label", [2, -1, None])
def test_a_label_outside_the_classes_is_refused_with_its_row(tmp_path: Path, label: int | None) -> None:
    write(tmp_path / "train.parquet", table([1, 0, 1, label]))
    with pytest.raises(
        DataError,
        match=rf"train\.parquet, row 3: the label is {label}; there are 2 classes, 0 to 1\. Correct",
    ):
        load_dataset(source(tmp_path, classes=("cat", "dog")), "train")


def test_labels_must_be_integers_or_strings(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", table([1.0, 0.0]))
    with pytest.raises(DataError, match=r"column 'label' are double"):
        load_dataset(source(tmp_path, classes=("cat", "dog")), "train")


def test_ambiguous_columns_are_refused_with_the_settings_that_name_them(tmp_path: Path) -> None:
    content = table(["a", "b"], image="photo", label="kind")
    write(tmp_path / "train.parquet", content.append_column("scan", content["photo"]))
    with pytest.raises(
        DataError, match=r"2 columns could hold the images; there are photo \(binary\).*image_column"
    ):
        dataset_info(source(tmp_path))
    with pytest.raises(DataError, match=r"no column holds the labels.*data\.label_column"):
        dataset_info(source(tmp_path, image_column="photo"))
    with pytest.raises(DataError, match=r"no column 'fhoto'; did you mean 'photo'"):
        dataset_info(source(tmp_path, image_column="fhoto", label_column="kind"))
    with pytest.raises(DataError, match=r"column 'note' is string; it must hold the bytes"):
        dataset_info(source(tmp_path, image_column="note", label_column="kind"))
    found = load_dataset(source(tmp_path, image_column="photo", label_column="kind"), "train")
    assert by_id(found) == ([0, 1], [0, 1])


def test_a_later_file_with_other_columns_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", table(["a", "b"]))
    write(tmp_path / "train-1.parquet", table(["a"], image="picture"))
    with pytest.raises(DataError, match=r"train-1\.parquet has no column 'image'"):
        load_dataset(source(tmp_path), "train")


def test_rows_without_a_readable_image_are_named(tmp_path: Path) -> None:
    content = table(["a", "b", "a"])
    broken = pa.array([png(0), png(1)[:30], png(2)], pa.binary())
    write(tmp_path / "train.parquet", content.set_column(0, "image", broken))
    with pytest.raises(DataError, match=r"1 of 3 images.*train\.parquet, row 1 \("):
        load_dataset(source(tmp_path), "train")
    write(
        tmp_path / "train.parquet",
        content.set_column(0, "image", pa.array([png(0), None, png(2)], pa.binary())),
    )
    with pytest.raises(DataError, match=r"train\.parquet, row 1: there are no image bytes\. Embed"):
        load_dataset(source(tmp_path), "train")
    elsewhere = as_hugging_face(content, ["a"])
    structs = [{"bytes": None, "path": "a.png"}] * 3
    write(
        tmp_path / "train.parquet",
        elsewhere.set_column(0, "image", pa.array(structs, elsewhere["image"].type)),
    )
    with pytest.raises(DataError, match=r"row 0: there are no image bytes \(it names the file a\.png\)"):
        dataset_info(source(tmp_path))


def test_several_sizes_are_refused_unless_one_is_set(tmp_path: Path) -> None:
    content = table(["a", "b"]).set_column(0, "image", pa.array([png(3), png(4, (16, 12))], pa.binary()))
    write(tmp_path / "train.parquet", content)
    with pytest.raises(
        DataError, match=r"row 1 \(16 x 12 px, the first image has 8 x 8: set data\.image_size"
    ):
        load_dataset(source(tmp_path), "train")
    assert by_id(load_dataset(source(tmp_path, image_size=10), "train"))[1] == [3, 4]


def test_given_files_and_folders(tmp_path: Path) -> None:
    one = write(tmp_path / "x" / "one.parquet", table(["a", "b"]))
    write(tmp_path / "x" / "two.parquet", table(["b"], first=2))
    given = DataSource(name="parquet", train=str(tmp_path / "x"), test=str(one))
    assert by_id(load_dataset(given, "train")) == ([0, 1, 1], [0, 1, 2])
    assert by_id(load_dataset(given, "test")) == ([0, 1], [0, 1])
    gone = DataSource(name="parquet", train=str(tmp_path / "gone"), test=str(one))
    with pytest.raises(DataError, match=r"data\.train .*gone is neither a file nor a folder"):
        load_dataset(gone, "train")


def test_splits_are_recognised_only_by_the_beginning_of_names(tmp_path: Path) -> None:
    write(tmp_path / "training_notes.parquet", table(["z"]))
    write(tmp_path / "train" / "0.parquet", table(["a", "b"]))
    write(tmp_path / "data" / "test-0.parquet", table(["b"]))
    write(tmp_path / "latest.parquet", table(["z"]))
    assert dataset_info(source(tmp_path)).classes == ("a", "b")
    assert load_dataset(source(tmp_path), "test").labels_N.tolist() == [1]


def test_files_that_number_the_classes_differently_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", as_hugging_face(table([0, 1]), ["cat", "dog"]))
    for names, how in (
        (["dog", "cat"], "label 0 is 'dog'"),
        (["cat", "dog", "fox"], "3 names for 2 classes"),
    ):
        write(tmp_path / "test.parquet", as_hugging_face(table([0, 1]), names))
        with pytest.raises(DataError, match=rf"test\.parquet: the schema names other classes.*\({how}\)"):
            load_dataset(source(tmp_path), "test")
    renamed = load_dataset(source(tmp_path, classes=("a", "b", "c")), "test")
    assert renamed.classes == ("a", "b", "c")


def stream_of(content: pa.Table, **options: Any) -> bytearray:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, content.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(content)
    return bytearray(sink.getvalue().to_pybytes())


def refusal(root: Path, content: bytes) -> str:
    (root / "train.arrow").write_bytes(content)
    given = DataSource(
        name="parquet",
        train=str(root / "train.arrow"),
        test=str(root / "train.arrow"),
        classes=("cat", "dog"),
        image_column="image",
    )
    with pytest.raises(DataError) as error:
        load_dataset(given, "train")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("ends", [(2**31 - 1, 2**31 - 1), (-5, 2**30), (60, 10)])
def test_offsets_that_lead_out_of_the_file_are_refused(tmp_path: Path, ends: tuple[int, int]) -> None:
    content, size = stream_of(table([0, 1])), len(png(0))
    place = bytes(content).index(struct.pack("<iii", 0, size, size + len(png(1))))
    content[place + 4 : place + 12] = struct.pack("<ii", *ends)
    assert "train.arrow cannot be read as an Arrow file or stream" in refusal(tmp_path, content)


def test_a_compressed_buffer_that_claims_an_absurd_size_is_refused(tmp_path: Path) -> None:
    large = table([0, 1] * 50)
    content = stream_of(large, compression="zstd")
    unpacked = sum(len(value) for value in large["image"].to_pylist())
    place = bytes(content).index(struct.pack("<q", unpacked))
    content[place : place + 8] = struct.pack("<q", 10**11)
    assert "train.arrow cannot be read as an Arrow file or stream" in refusal(tmp_path, content)


def test_more_rows_than_bytes_are_refused(tmp_path: Path) -> None:
    def runs(value: Any) -> pa.Array:
        return pa.RunEndEncodedArray.from_arrays(pa.array([2 * 10**9], pa.int64()), pa.array([value]))

    content = pa.table({"image": runs(png(0)), "label": runs(1)})
    assert "claims 2,000,000,000 rows; an image takes at least one byte" in refusal(
        tmp_path, stream_of(content)
    )


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    plain = table(["cat", "dog"])
    for wrong in (b"cat", b"note", b"label"):
        content = stream_of(plain)
        content[:] = content.replace(wrong, b"\xff" + wrong[1:])
        assert re.search("train.arrow (cannot be read|: the label)", refusal(tmp_path, content))


@pytest.mark.parametrize(
    "features",
    ["[" * 100_000, '{"info": {"features": ' + "[" * 900 + "]" * 900 + "}}"],
    ids=["not closed", "closed"],
)
def test_deeply_nested_metadata_is_passed_over(tmp_path: Path, features: str) -> None:
    content = table(["cat", "dog"]).replace_schema_metadata({"huggingface": features})
    write(tmp_path / "train.parquet", content)
    write(tmp_path / "test.parquet", content)
    assert load_dataset(source(tmp_path), "train").classes == ("cat", "dog")


def test_an_empty_list_of_class_names_in_the_metadata_is_passed_over(tmp_path: Path) -> None:
    content = as_hugging_face(table(["cat", "dog"]), [])
    write(tmp_path / "train.parquet", content)
    assert dataset_info(source(tmp_path)).classes == ("cat", "dog")


def test_missing_empty_and_damaged_tables_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no file or folder whose name begins with train.*there are 0 such files"
    ):
        dataset_info(source(tmp_path))
    write(tmp_path / "train.parquet", table(["a"])[:0])
    with pytest.raises(DataError, match=r"train\.parquet: no rows in the train split"):
        dataset_info(source(tmp_path))
    path = write(tmp_path / "train.parquet", table(["a", "b"]))
    write(tmp_path / "test.parquet", table(["a"])[:0])
    with pytest.raises(DataError, match=r"test\.parquet: no rows in the test split"):
        load_dataset(source(tmp_path), "test")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train\.parquet cannot be read as Parquet"):
        load_dataset(source(tmp_path), "train")
    path.unlink()
    (tmp_path / "train.arrow").write_bytes(b"not arrow at all")
    with pytest.raises(DataError, match=r"train\.arrow cannot be read as an Arrow file or stream"):
        load_dataset(source(tmp_path), "train")

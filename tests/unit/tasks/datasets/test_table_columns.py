"""Check that every Arrow type of encoded images or labels is read from every format and that others are refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import pytest
from PIL import Image

from tasks.datasets import DataSource, dataset_info, load_dataset
from tasks.errors import DataError


def bmp(number: int) -> bytes:
    """The image as BMP, which is not compressed, so that all have the same length."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 7)).save(stream, "BMP")
    return stream.getvalue()


BYTES = [bmp(number) for number in range(4)]
NAMES = ["dog", "cat", "cat", "dog"]
StageOutput = Callable[[], pa.Array]


class Photo(pa.ExtensionType):
    """A struct as an extension type with a name."""

    def __init__(self) -> None:
        super().__init__(pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "tests.photo")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Photo:
        return cls()


def structs(kind: pa.DataType) -> pa.Array:
    values = [{"bytes": content, "path": None} for content in BYTES]
    return pa.array(values, pa.struct([("bytes", kind), ("path", pa.string())]))


IMAGES: dict[str, StageOutput] = {
    "binary": lambda: pa.array(BYTES, pa.binary()),
    "large_binary": lambda: pa.array(BYTES, pa.large_binary()),
    "binary_view": lambda: pa.array(BYTES, pa.binary_view()),
    "dictionary": lambda: pa.array(BYTES, pa.binary()).dictionary_encode(),
    "struct": lambda: structs(pa.large_binary()),
    "struct of views": lambda: structs(pa.binary_view()),
    "extension": lambda: pa.ExtensionArray.from_storage(Photo(), structs(pa.binary())),
}
# Parquet does not have these types.
ARROW_IMAGES: dict[str, StageOutput] = {
    "runs": lambda: pa.compute.run_end_encode(pa.array(BYTES, pa.binary())),
    "dictionary of views": lambda: pa.DictionaryArray.from_arrays(
        pa.array(range(4)), pa.array(BYTES, pa.binary_view())
    ),
}
LABELS: dict[str, StageOutput] = {
    "string": lambda: pa.array(NAMES, pa.string()),
    "large_string": lambda: pa.array(NAMES, pa.large_string()),
    "string_view": lambda: pa.array(NAMES, pa.string_view()),
    "dictionary": lambda: pa.array(NAMES).dictionary_encode(),
    "dictionary of large": lambda: pa.array(NAMES, pa.large_string()).dictionary_encode(),
}
ARROW_LABELS: dict[str, StageOutput] = {
    "runs": lambda: pa.compute.run_end_encode(pa.array(NAMES)),
    "dictionary of views": lambda: pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 1, 0]), pa.array(["dog", "cat"], pa.string_view())
    ),
}
WHOLE = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]


def write(folder: Path, form: str, images: pa.Array, labels: pa.Array) -> None:
    made = pa.table({"image": images, "label": labels})
    for split in ("train", "test"):
        if form == "parquet":
            pyarrow.parquet.write_table(made, folder / f"{split}.parquet")
        else:
            new = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
            with new(folder / f"{split}.arrow", made.schema) as writer:
                writer.write_table(made)


def source(folder: Path, **settings: Any) -> DataSource:
    return DataSource(name="parquet", root=str(folder), **settings)


def check(folder: Path, **settings: Any) -> None:
    """Assert that both splits have the four images and their labels."""
    for split in ("train", "test"):
        data = load_dataset(source(folder, **settings), split)  # type: ignore[arg-type]
        order = np.argsort(data.image_ids_N)
        assert data.images(order)[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
        assert data.classes == ("cat", "dog")
        assert data.labels_N[order].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("form", ["parquet", "file", "stream"])
@pytest.mark.parametrize("kind", [*IMAGES, *ARROW_IMAGES])
def test_images_in_every_binary_type_are_read(tmp_path: Path, form: str, kind: str) -> None:
    if form == "parquet" and kind in ARROW_IMAGES:
        return
    write(tmp_path, form, (IMAGES | ARROW_IMAGES)[kind](), pa.array(NAMES))
    check(tmp_path)
    check(tmp_path, image_column="image")


@pytest.mark.parametrize("form", ["parquet", "file", "stream"])
@pytest.mark.parametrize("kind", [*LABELS, *ARROW_LABELS])
def test_labels_of_every_string_type_are_read(tmp_path: Path, form: str, kind: str) -> None:
    if form == "parquet" and kind in ARROW_LABELS:
        return
    write(tmp_path, form, IMAGES["binary"](), (LABELS | ARROW_LABELS)[kind]())
    check(tmp_path)


@pytest.mark.parametrize("form", ["parquet", "file", "stream"])
@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("kind", WHOLE, ids=str)
def test_labels_of_every_integer_type_are_read(
    tmp_path: Path, form: str, encoded: bool, kind: pa.DataType
) -> None:
    labels = pa.array([1, 0, 0, 1], kind)
    write(tmp_path, form, IMAGES["binary"](), labels.dictionary_encode() if encoded else labels)
    check(tmp_path, classes=("cat", "dog"))


def test_fixed_size_binary_is_read_only_if_its_column_is_named(tmp_path: Path) -> None:
    fixed = pa.array(BYTES, pa.binary(len(BYTES[0])))
    write(tmp_path, "file", fixed, pa.array(NAMES))
    with pytest.raises(
        DataError, match=r"no column holds the images; .*fixed_size_binary.*data\.image_column"
    ):
        dataset_info(source(tmp_path))
    check(tmp_path, image_column="image")


@pytest.mark.parametrize("beside", [pa.binary(4), pa.binary_view(), pa.uuid()], ids=str)
def test_a_hash_or_a_thumbnail_of_another_type_is_not_taken_for_the_images(
    tmp_path: Path, beside: pa.DataType
) -> None:
    size = 16 if beside == pa.uuid() else 4
    made = pa.table({"image": BYTES, "label": NAMES, "hash": pa.array([b"x" * size] * 4, beside)})
    for split in ("train", "test"):
        with pa.ipc.new_file(tmp_path / f"{split}.arrow", made.schema) as writer:
            writer.write_table(made)
    check(tmp_path)


@pytest.mark.parametrize(
    "images",
    [
        pa.array(["a"] * 4),
        pa.array([1, 2, 3, 4]),
        pa.array([[1]] * 4),
        pa.array([{"path": "a"}] * 4),
        pa.array([{"bytes": {"bytes": b"a"}}] * 4),
    ],
)
def test_other_types_of_images_are_refused_with_the_supported_ones(tmp_path: Path, images: pa.Array) -> None:
    write(tmp_path, "file", images, pa.array(NAMES))
    with pytest.raises(
        DataError, match=r"column 'image' is .*; it must hold .* as binary, .*binary_view.*struct"
    ):
        dataset_info(source(tmp_path, image_column="image"))


@pytest.mark.parametrize("labels", [pa.array([1.0] * 4), pa.array([True] * 4), pa.array([b"a"] * 4)])
def test_other_types_of_labels_are_refused_with_the_supported_ones(tmp_path: Path, labels: pa.Array) -> None:
    write(tmp_path, "file", IMAGES["binary"](), labels)
    with pytest.raises(
        DataError, match=r"'label' are .*; they must be integers or strings, plain or as a dict"
    ):
        load_dataset(source(tmp_path, image_column="image", classes=("cat", "dog")), "train")


def shards(folder: Path, later: pa.Table) -> DataSource:
    """A data set of two training files, the second with the table `later`."""
    first = pa.table({"image": BYTES, "label": NAMES})
    for number, made in enumerate((first, later)):
        pyarrow.parquet.write_table(made, folder / f"train-{number}.parquet")
    return source(folder)


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ({"image": ["a"], "label": ["cat"]}, r"train-1\.parquet: the column 'image' is string"),
        ({"image": BYTES[:1]}, r"train-1\.parquet has no column 'label'"),
        ({"image": BYTES[:1], "label": [1]}, r"train-1\.parquet: the labels .* are numbers"),
    ],
)
def test_a_later_file_of_other_types_is_named(
    tmp_path: Path, later: dict[str, list[Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(shards(tmp_path, pa.table(later)), "train")


def test_integer_labels_in_the_test_split_are_refused_if_those_of_the_training_split_are_strings(
    tmp_path: Path,
) -> None:
    pyarrow.parquet.write_table(pa.table({"image": BYTES, "label": NAMES}), tmp_path / "train.parquet")
    pyarrow.parquet.write_table(pa.table({"image": BYTES, "label": [1, 0, 0, 1]}), tmp_path / "test.parquet")
    with pytest.raises(DataError, match=r"test\.parquet: the labels in column 'label' are numbers"):
        load_dataset(source(tmp_path), "test")


def test_hidden_and_underscored_files_of_a_table_folder_are_ignored(tmp_path: Path) -> None:
    write(tmp_path, "parquet", IMAGES["binary"](), pa.array(NAMES))
    before = load_dataset(source(tmp_path), "train")
    for name in (
        ".ipynb_checkpoints/train-checkpoint.parquet",
        "._train.parquet",
        ".train.parquet.crc",
        "_temporary/train-0.parquet",
        "_SUCCESS",
        "README.md",
        "extra.parquet",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no table")
    after = load_dataset(source(tmp_path), "train")
    assert (before.passed_over, after.digest()) == ((), before.digest())
    assert after.passed_over == load_dataset(source(tmp_path), "test").passed_over
    assert after.passed_over == (
        f"Passed over in {tmp_path}: 5 hidden (.ipynb_checkpoints, _temporary, ._train.parquet, …); "
        "1 with another suffix (README.md); 1 of neither split (extra.parquet).",
    )
    given = DataSource(name="parquet", train=str(tmp_path / "train.parquet"), test=str(tmp_path))
    assert load_dataset(given, "train").passed_over == ()


def test_linked_folders_of_tables_are_followed_except_for_loops(tmp_path: Path) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    elsewhere.mkdir()
    root.mkdir()
    write(elsewhere, "parquet", IMAGES["binary"](), pa.array(NAMES))
    (elsewhere / "test.parquet").rename(root / "test.parquet")
    (root / "train").symlink_to(elsewhere)
    (root / "again").symlink_to(root)
    check(root)
    assert "1 linked to a folder above (again)" in load_dataset(source(root), "train").passed_over[0]


def test_a_link_to_a_missing_table_is_named(tmp_path: Path) -> None:
    write(tmp_path, "parquet", IMAGES["binary"](), pa.array(NAMES))
    (tmp_path / "train-1.parquet").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"train-1\.parquet cannot be read as Parquet"):
        load_dataset(source(tmp_path), "train")


def test_a_folder_with_only_hidden_tables_is_refused_and_they_are_listed(tmp_path: Path) -> None:
    (tmp_path / ".train.parquet").touch()
    with pytest.raises(DataError, match=r"no file or folder whose name .*1 hidden \(\.train\.parquet\)"):
        dataset_info(source(tmp_path))
    given = DataSource(name="parquet", train=str(tmp_path), test=str(tmp_path))
    with pytest.raises(DataError, match=r"neither a file nor a folder .*1 hidden"):
        dataset_info(given)


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("levels", [2, 3, 40])
def test_structs_in_structs_are_refused_as_images(tmp_path: Path, form: str, levels: int) -> None:
    kind: pa.DataType = pa.binary()
    values: list[Any] = BYTES
    for _ in range(levels):
        kind, values = pa.struct([("bytes", kind)]), [{"bytes": value} for value in values]
    write(tmp_path, form, pa.array(values, kind), pa.array(NAMES))
    with pytest.raises(
        DataError, match=r"the column 'image' is struct<bytes: struct<.*it must hold the bytes of im"
    ):
        load_dataset(source(tmp_path, image_column="image"), "train")


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([[0], [1], [0], [1]]),
        pa.array([{"a": 0}] * 4),
        pa.array([{"a": {"b": 0}}] * 4),
        pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int64())),
        pa.nulls(4),
        pa.array([[0, 1]] * 4, pa.list_(pa.int64(), 2)),
    ],
    ids=["list", "struct", "struct in struct", "map", "null", "fixed list"],
)
def test_nested_labels_are_refused_with_the_supported_types(tmp_path: Path, labels: pa.Array) -> None:
    write(tmp_path, "arrow", pa.array(BYTES), labels)
    with pytest.raises(
        DataError, match=r"the labels in column 'label' are .*they must be integers or strings"
    ):
        load_dataset(source(tmp_path, classes=("dog", "cat")), "train")


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("twice", ["image", "label"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, form: str, twice: str) -> None:
    columns = {"image": pa.array(BYTES), "label": pa.array(NAMES)}
    content = pa.Table.from_arrays([*columns.values(), columns[twice]], names=[*columns, twice])
    path = tmp_path / f"train.{form}"
    if form == "parquet":
        pyarrow.parquet.write_table(content, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, content.schema) as writer:
            writer.write_table(content)
    with pytest.raises(DataError, match=rf"2 columns '{twice}'; rename all but one"):
        dataset_info(source(tmp_path, image_column="image", label_column="label"))

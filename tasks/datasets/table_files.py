"""Find the Parquet and Arrow files of a split, and read record batches from them.

Supported are .parquet, and .arrow or .feather in Arrow's file or stream format (Hugging Face's `datasets` stores the
stream format). Splits are recognised as on the Hugging Face hub: by `train`, `test` or `validation` at the start of a
file's or folder's name. In folders, names that begin with `.` or `_` are passed over, as in pyarrow.dataset.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from tasks.datasets.base import Split
from tasks.datasets.own_files import IgnoredFiles, iter_files
from tasks.datasets.source import DataSource
from tasks.errors import DataError

SUFFIXES = (".parquet", ".arrow", ".feather")
TEST_NAMES = ("test", "validation", "valid", "val")


@dataclass(frozen=True, kw_only=True)
class SplitFiles:
    """The tables of a split in the order of their names, and sentences about files that are not read."""

    files: list[Path]
    passed_over: tuple[str, ...] = ()


def split_files(source: DataSource, split: Split) -> SplitFiles:
    """The files of a split. Raises DataError if there are none."""
    given = source.train if split == "train" else source.test
    if given is not None:
        return _given_files(Path(given).expanduser(), split)
    root = source.folder("the Parquet data set")
    passed = IgnoredFiles(root)
    there = _table_files(root, passed)
    names: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": TEST_NAMES}
    files = {part: _named(there, root, names[part]) for part in names}
    if not files[split]:
        raise DataError(
            f"{root} has no file or folder whose name begins with {' or '.join(names[split])} and that is Parquet or "
            f"Arrow ({', '.join(SUFFIXES)}); there are {len(there)} such files in all. Set data.train and data.test to "
            f"the files, or to folders of them.{''.join(f' {note}' for note in passed.notes())}"
        )
    used = {*files["train"], *files["test"]}
    for path in there:
        if path not in used:
            passed.add("of neither split", path)
    return SplitFiles(files=files[split], passed_over=passed.notes())


def _named(there: Sequence[Path], root: Path, names: Sequence[str]) -> list[Path]:
    """The tables whose name begins with the first of `names` that matches any table."""
    for name in names:
        begins = re.compile(rf"(^|/){name}([-_./0-9]|$)")
        tables = [path for path in there if begins.search(path.relative_to(root).as_posix())]
        if tables:
            return tables
    return []


def _given_files(path: Path, split: Split) -> SplitFiles:
    if path.is_file():
        return SplitFiles(files=[path])
    passed = IgnoredFiles(path)
    tables = _table_files(path, passed) if path.is_dir() else []
    if not tables:
        raise DataError(
            f"data.{split} {path} is neither a file nor a folder that holds tables ({', '.join(SUFFIXES)}). Correct it."
            f"{''.join(f' {note}' for note in passed.notes())}"
        )
    return SplitFiles(files=tables, passed_over=passed.notes())


def _table_files(folder: Path, passed: IgnoredFiles) -> list[Path]:
    return sorted(iter_files(folder, SUFFIXES, passed, underscores=False))


def read_schema(path: Path) -> pa.Schema:
    """The columns and metadata of a file. Raises DataError if it is damaged."""
    with _reading(path):
        if path.suffix.lower() == ".parquet":
            schema = pa.parquet.read_schema(path)
        else:
            with pa.memory_map(str(path)) as stream:
                schema = _open_arrow(stream)[0]
        _ = [child.name for field in schema for child in field.flatten()]  # names are decoded only here
        return schema


def iter_rows(path: Path, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield batches of at most `batch_rows` rows, in order. Raises DataError if the file is damaged."""
    with _reading(path):
        if path.suffix.lower() == ".parquet":
            with pa.parquet.ParquetFile(path) as file:
                _check_rows(path, file.metadata.num_rows)
                for batch in file.iter_batches(batch_size=batch_rows, columns=list(columns)):
                    batch.validate(full=True)  # of the text
                    if batch.num_rows:  # a row group may be empty
                        yield batch
            return
        with pa.memory_map(str(path)) as stream:
            rows = 0
            for batch in _open_arrow(stream)[1]:
                rows += batch.num_rows
                _check_rows(path, rows)
                chosen = batch.select(list(columns))
                chosen.validate(full=True)  # offsets that lead out of the file would crash the process
                for start in range(0, batch.num_rows, batch_rows):
                    yield chosen.slice(start, batch_rows)


def _check_rows(path: Path, rows: int) -> None:
    """Raise DataError if there are more rows than bytes. Run lengths can claim any number of rows in a few bytes."""
    size = path.stat().st_size
    if rows > size:
        raise DataError(
            f"{path} has {size:,} bytes and claims {rows:,} rows; an image takes at least one byte. Give a whole file."
        )


def _open_arrow(stream: pa.NativeFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema and the batches, for Arrow's file and stream formats."""
    try:
        file = pa.ipc.open_file(stream)
    except pa.ArrowInvalid:
        stream.seek(0)
        reader = pa.ipc.open_stream(stream)
        return reader.schema, iter(reader)
    return file.schema, (file.get_batch(i) for i in range(file.num_record_batches))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    kind = "Parquet" if path.suffix.lower() == ".parquet" else "an Arrow file or stream"
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as {kind} ({' '.join(str(error).split())}). Give a whole file of that format, or "
            "remove it."
        ) from error

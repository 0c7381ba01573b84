"""Read and write files atomically, in a local folder or in s3:// and gs:// storage through pyarrow.

    place("runs")             a pathlib.Path
    place("s3://bucket/runs") a RemotePath: the part of pathlib.Path's interface that the stages use
    local(path)               a file for readers that need one (memory maps, Parquet, safetensors): the path itself, or
                              its copy in the node's cache
    writing(path)             a file to fill; when the block ends, it becomes `path` by a rename or a single upload

Credentials, region and endpoint of S3 come from the places that AWS' own tools use (AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_DEFAULT_REGION, AWS_ENDPOINT_URL, …), those of GCS from the places that Google's use; none is written anywhere.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet

from tasks.errors import ConfigError, DataError, StorageError
from tasks.storage.remote import (
    CACHE_VARIABLE,
    RemotePath,
    copies_of,
    copy_of,
    forget_copies,
    reaching,
)

SCHEMES = ("s3", "gs")
_ADDRESS = re.compile(r"((?:s3[an]?|gs|file|https?|ftp|hdfs|abfss?|az):)", re.IGNORECASE)
CHUNK_BYTES = 1 << 22
DEEPEST = 64  # lists and maps inside each other in a JSON file
TOO_DEEP = f"it has more than {DEEPEST} lists or maps inside each other"

Place = Path | RemotePath


def _mode_of_new_files() -> int:
    """The permissions that the process' umask leaves. It can be read only by setting it, so threads must not."""
    umask = os.umask(0o077)
    os.umask(umask)
    return 0o666 & ~umask


_MODE = _mode_of_new_files()


def place(text: str) -> Place:
    """The path that `text` names: a RemotePath for s3:// and gs://, else a local path. Raises ConfigError."""
    scheme, separator, key = text.partition("://")
    if not separator:
        return _local_place(text)
    if scheme not in SCHEMES:
        raise ConfigError(
            f"{text!r} has the scheme {scheme!r}. Give a local path, s3://BUCKET/… or gs://BUCKET/…"
        )
    key = str(PurePosixPath(key.strip("/")))
    if "@" in key.partition("/")[0] or "?" in key:  # not repeated here, as it would be in logs and records
        raise ConfigError(
            f"An {scheme}:// path holds credentials or options (it has an @ before its first / or a ?). Give "
            f"{scheme}://BUCKET/PATH, and credentials as the cloud's own tools take them: AWS_ACCESS_KEY_ID and others."
        )
    if key in ("", ".") or ".." in PurePosixPath(key).parts:
        raise ConfigError(f"{text!r} names no bucket and path. Give {scheme}://BUCKET/PATH")
    return RemotePath(scheme, key)


def _local_place(text: str) -> Path:
    address = _ADDRESS.match(text)
    if address:
        raise ConfigError(
            f"{text!r} begins with {address[1]!r} and has no //. Give s3://BUCKET/… or gs://BUCKET/…, or write "
            f"./{text} for a local path."
        )
    if not text:
        raise ConfigError("a path is empty. Give a file or folder, or . for the current folder.")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # ~NAME of no user
        raise ConfigError(
            f"{text!r} starts with the home folder of an unknown user. Give a path without ~."
        ) from error


def local(path: Place) -> Path:
    """A local file with the content of `path`. Raises FileNotFoundError, StorageError.

    A remote file is copied once per node. The copy is named by address, size and modification time, so a file that
    was replaced is copied again.
    """
    if isinstance(path, Path):
        return path
    info = path.info()
    if info.type != pa.fs.FileType.File:
        raise FileNotFoundError(f"{path} does not exist")
    copy = copy_of(path, info)
    if size_of(copy) != info.size:
        _make_cache(copy.parent)
        with writing(copy) as part:
            with reaching(path), path.system().open_input_stream(path.key) as stream, part.open("wb") as sink:
                shutil.copyfileobj(stream, sink, CHUNK_BYTES)
            arrived = part.stat().st_size
            if arrived != info.size:
                raise StorageError(
                    f"{path} has {info.size} bytes, but {arrived} were received. Run the same command again to resume."
                )
        forget_copies(path, but=copy)
    return copy


@contextmanager
def writing(path: Place) -> Iterator[Path]:
    """A new local file to fill. It becomes `path` when the block ends, and is deleted if the block raises."""
    if isinstance(path, Path):
        part = _unique(path)
        with _right_kinds(path):
            refuse_special(path)
            _make_folder(part.parent)
    else:
        part = _unique(copies_of(path) / path.name)
        _make_cache(part.parent)
    try:
        yield part
        part.chmod(_MODE)  # some writers make it private
        if isinstance(path, Path):
            with _right_kinds(path):
                part.replace(path)
        else:
            _upload(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill. It replaces `path`, if that exists, when the block ends, and is deleted if it raises."""
    part, old = _unique(path), _unique(path)
    part.mkdir(parents=True)
    try:
        yield part
        if path.is_dir():
            path.rename(old)
        try:
            part.rename(path)
        except OSError:
            if old.is_dir():
                old.rename(path)
            raise
        remove_tree(old)
    finally:
        remove_tree(part)


@contextmanager
def _right_kinds(path: Path) -> Iterator[None]:
    """Raise DataError if a folder is in the place of a file, or a file in the place of a folder."""
    try:
        yield
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror}, {error.filename}. Something else is there; move it away, "
            "then run the same command again."
        ) from error


def refuse_special(path: Path) -> None:
    """Raise DataError for a pipe, a socket or a device: the rename would put a file in place of /dev/null."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path} cannot be written: it is a pipe, a socket or a device. Name a regular file.")


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents. Retries if another writer deletes it between pathlib's two checks."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            with suppress(FileNotFoundError):  # gone again, as at pathlib's second check
                if not stat.S_ISDIR(folder.lstat().st_mode):  # something else is there
                    raise
        else:
            return


def _make_cache(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The cache for remote files cannot be written ({error}). Set {CACHE_VARIABLE} to a writable folder."
        ) from error


def _upload(part: Path, path: RemotePath) -> None:
    with reaching(path), part.open("rb") as stream, path.system().open_output_stream(path.key) as sink:
        shutil.copyfileobj(stream, sink, CHUNK_BYTES)
    # The uploaded file becomes the node's copy: it need not be fetched again, and an older copy of the same size and
    # second would be wrong.
    copy = copy_of(path, path.info())
    part.replace(copy)
    forget_copies(path, but=copy)


def _unique(path: Path) -> Path:
    """A temporary name for this writer alone: two writers of one file must not share a temporary file."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def write_text(path: Place, text: str) -> None:
    """Write a small text file atomically."""
    if isinstance(path, RemotePath):
        path.write_bytes(text.encode())
        return
    with writing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_table(path: Place, table: pa.Table) -> None:
    """Write a table as CSV if the path ends in .csv, else as Parquet.

    In CSV, text that a spreadsheet would run as a formula begins with an apostrophe.
    """
    with writing(path) as part:
        if path.suffix == ".csv":
            pa.csv.write_csv(_without_formulas(table), part)
        else:
            pa.parquet.write_table(table, part)


def _without_formulas(table: pa.Table) -> pa.Table:
    """The table, with an apostrophe before text that begins like a formula. Source: OWASP, CSV injection."""
    for number, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            column = table.column(number)
            quoted = pc.binary_join_element_wise("'", column, "")
            formula = pc.match_substring_regex(column, "^[=+@\\t\\r-]")
            table = table.set_column(number, field.name, pc.if_else(formula, quoted, column))
    return table


def read_table(path: Place, remedy: str, **options: Any) -> pa.Table:
    """Read a Parquet file; `options` are pyarrow's. Raises DataError with `remedy` if it is missing or damaged."""
    try:
        return pa.parquet.read_table(local(path), **options)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist. {remedy}") from error
    except (OSError, pa.ArrowException) as error:
        # pyarrow's OSError for a truncated file has no system error number.
        why = getattr(error, "strerror", None) or "it is not a whole Parquet file with these columns"
        raise DataError(f"{path} cannot be read: {why}. {remedy}") from error


def append_line(path: Place, line: str) -> None:
    """Append a line to a small log. An object store cannot append, so there the log is read and rewritten.

    If the last line has no end, because its writer was killed, the new line still begins on a line of its own.
    """
    if isinstance(path, Path):
        with path.open("ab+") as stream:
            stream.seek(max(0, stream.tell() - 1))
            stream.write(_whole_line(line, after=stream.read(1)))
        return
    before = path.read_bytes() if path.is_file() else b""
    path.write_bytes(before + _whole_line(line, after=before[-1:]))


def _whole_line(line: str, *, after: bytes) -> bytes:
    """The bytes of a line that begins on its own, whatever the last byte before it is."""
    return (b"" if after in (b"", b"\n") else b"\n") + line.encode() + b"\n"


def parse_json(text: str | bytes) -> Any:
    """The content of a JSON text. Raises ValueError if it is damaged, or nested more deeply than any file of ours."""
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    level = [content]
    for _ in range(DEEPEST):
        level = [v for c in level for v in _values(c) if isinstance(v, dict | list)]
        if not level:
            return content
    raise ValueError(TOO_DEEP)


def _values(content: Any) -> Iterable[Any]:
    if isinstance(content, dict):
        return content.values()
    return content if isinstance(content, list) else ()


def read_json(path: Place) -> Any:
    """The content of a JSON file. Raises OSError, also for a pipe or a device, and ValueError if it is damaged."""
    if isinstance(path, Path):
        require_regular(path)
    return parse_json(path.read_text(encoding="utf-8"))


def read_json_lines(path: Place) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of a log that `append_line` writes, and the number of lines that are not JSON objects.

    A line is damaged if its writer was killed. No log gives no lines. Raises DataError if the log cannot be read.
    """
    if not path.is_file():
        return [], 0
    try:
        lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    objects = []
    for line in lines:
        with suppress(ValueError):
            content = parse_json(line)
            if isinstance(content, dict):
                objects.append(content)
    return objects, len(lines) - len(objects)


def find(folder: Place, pattern: str, *, deep: bool = False) -> list[Place]:
    """Sorted files and folders in `folder` (deep: and in all folders below it) whose names match `pattern`."""
    matches: list[Place] = [*(folder.rglob(pattern) if deep else folder.glob(pattern))]
    return sorted(matches, key=str)


def inside(path: Place, folder: Place) -> str:
    """The path of something in `folder`, relative to `folder`."""
    return str(path).removeprefix(str(folder)).lstrip("/")


def size_of(path: Place) -> int | None:
    """Size of a file in bytes, `None` if there is no such file."""
    if isinstance(path, RemotePath):
        return path.size()
    return path.stat().st_size if path.is_file() else None


def require_regular(path: Path) -> Path:
    """Return `path`. Raises OSError if it is a pipe, a socket or a device, which could be waited for without end."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device; give a regular file", str(path))
    return path


def remove_tree(path: Place) -> None:
    """Delete a folder with its content, if it exists."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(FileNotFoundError), reaching(path):
        path.system().delete_dir(path.key)


def copy_file(source: Place, target: Place) -> None:
    """Copy one file atomically."""
    with writing(target) as part:
        shutil.copyfile(local(source), part)

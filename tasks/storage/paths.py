"""A storage path in, files that are there whole or not at all out: a folder here, or s3:// and gs:// through pyarrow.

    place("runs")             a pathlib.Path
    place("s3://bucket/runs") a RemotePath: the part of pathlib.Path's interface that the stages use
    local(path)               a file for readers that need one (memory maps, Parquet, safetensors): the path itself, or
                              its copy in the node's cache
    writing(path)             a file to fill; it takes its place when the block ends, by a rename or a single upload

Credentials, region and endpoint of S3 come from where AWS' own tools take them (AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_DEFAULT_REGION, AWS_ENDPOINT_URL, …), those of GCS from Google's; none of them is written anywhere.
"""

from __future__ import annotations

import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
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
CHUNK_BYTES = 1 << 22

Place = Path | RemotePath


def place(text: str) -> Place:
    """Where `text` points: a RemotePath for s3:// and gs://, else a local path. ConfigError for another scheme."""
    scheme, separator, key = text.partition("://")
    if not separator:
        return Path(text).expanduser().absolute()
    if scheme not in SCHEMES:
        raise ConfigError(
            f"{text!r} has the scheme {scheme!r}. Give a local path, s3://BUCKET/… or gs://BUCKET/…"
        )
    key = str(PurePosixPath(key.strip("/")))
    if key in ("", ".") or ".." in PurePosixPath(key).parts:
        raise ConfigError(f"{text!r} names no bucket and path. Give {scheme}://BUCKET/PATH")
    return RemotePath(scheme, key)


def local(path: Place) -> Path:
    """A local file with the content of `path`. Raises FileNotFoundError, StorageError.

    A remote file is copied once a node: its copy is named by address, size and time of writing, so a file that was
    replaced is copied anew.
    """
    if isinstance(path, Path):
        return path
    info = path.info()
    if info.type != pa.fs.FileType.File:
        raise FileNotFoundError(f"{path} is not there")
    copy = copy_of(path, info)
    if size_of(copy) != info.size:
        _make_cache(copy.parent)
        with writing(copy) as part:
            with reaching(path), path.system().open_input_stream(path.key) as stream, part.open("wb") as sink:
                shutil.copyfileobj(stream, sink, CHUNK_BYTES)
            arrived = part.stat().st_size
            if arrived != info.size:
                raise StorageError(
                    f"{path} has {info.size} bytes, and {arrived} arrived here. Run the same command again to go on."
                )
        forget_copies(path, but=copy)
    return copy


@contextmanager
def writing(path: Place) -> Iterator[Path]:
    """A new local file to fill, which becomes `path` when the block ends and is gone when it raises."""
    if isinstance(path, Path):
        part = _unique(path)
        with _right_kinds(path):
            _make_folder(part.parent)
    else:
        part = _unique(copies_of(path) / path.name)
        _make_cache(part.parent)
    try:
        yield part
        part.chmod(0o644)  # some writers make it private; all workers must be able to read a shared path
        if isinstance(path, Path):
            with _right_kinds(path):
                part.replace(path)
        else:
            _upload(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _right_kinds(path: Path) -> Iterator[None]:
    """A folder where a file belongs, or a file where a folder does, is the user's to move."""
    try:
        yield
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror}, {error.filename}. Something else stands there; move it away, "
            "then run the same command again."
        ) from error


def _make_folder(folder: Path) -> None:
    """With those above it. Another writer may clear it away between pathlib's two looks at it: then once more."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            with suppress(FileNotFoundError):  # gone at this look, as at pathlib's second
                if not stat.S_ISDIR(folder.lstat().st_mode):  # something else stands there
                    raise
        else:
            return


def _make_cache(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The cache for remote files cannot be written ({error}). Set {CACHE_VARIABLE} to a folder that can."
        ) from error


def _upload(part: Path, path: RemotePath) -> None:
    with reaching(path), part.open("rb") as stream, path.system().open_output_stream(path.key) as sink:
        shutil.copyfileobj(stream, sink, CHUNK_BYTES)
    # It need not be fetched again, and an older copy of the same size and second would be wrong.
    copy = copy_of(path, path.info())
    part.replace(copy)
    forget_copies(path, but=copy)


def _unique(path: Path) -> Path:
    """A name of this writer's own: two writers of one file must not meet in one temporary file."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def write_text(path: Place, text: str) -> None:
    """Replaces a small text file as a whole."""
    if isinstance(path, RemotePath):
        path.write_bytes(text.encode())
        return
    with writing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_table(path: Place, table: pa.Table) -> None:
    """A table as Parquet or CSV, by the path's suffix."""
    with writing(path) as part:
        if path.suffix == ".csv":
            pa.csv.write_csv(table, part)
        else:
            pa.parquet.write_table(table, part)


def read_table(path: Place, remedy: str, **options: Any) -> pa.Table:
    """A Parquet file; `options` are pyarrow's. Raises DataError, which ends with the remedy, when it is damaged."""
    try:
        return pa.parquet.read_table(local(path), **options)
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there. {remedy}") from error
    except (OSError, pa.ArrowException) as error:
        # pyarrow's OSError for a torn file has no number of the system's.
        why = getattr(error, "strerror", None) or "it is no whole Parquet file with these columns"
        raise DataError(f"{path} cannot be read: {why}. {remedy}") from error


def append_line(path: Place, line: str) -> None:
    """Adds a line to a small log. An object store cannot append, so there the log is read and put again."""
    if isinstance(path, Path):
        with path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        return
    before = path.read_bytes() if path.is_file() else b""
    path.write_bytes(before + line.encode() + b"\n")


def find(folder: Place, pattern: str, *, deep: bool = False) -> list[Place]:
    """Files and folders of `folder` (deep: and of all below it) whose names match, in order."""
    found: list[Place] = [*(folder.rglob(pattern) if deep else folder.glob(pattern))]
    return sorted(found, key=str)


def inside(path: Place, folder: Place) -> str:
    """The path of something in `folder`, from there on."""
    return str(path).removeprefix(str(folder)).lstrip("/")


def size_of(path: Place) -> int | None:
    """Bytes of a file, None where there is none."""
    if isinstance(path, RemotePath):
        return path.size()
    return path.stat().st_size if path.is_file() else None


def remove(path: Place) -> None:
    """Deletes what stands at `path`, be it a file or a folder; nothing where there is nothing."""
    if path.is_dir():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def remove_tree(path: Place) -> None:
    """Deletes a folder and all in it; nothing where there is none."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(FileNotFoundError), reaching(path):
        path.system().delete_dir(path.key)


def copy_file(source: Place, target: Place) -> None:
    """Copies one file; it appears whole."""
    with writing(target) as part:
        shutil.copyfile(local(source), part)

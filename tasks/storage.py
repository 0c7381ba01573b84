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

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet

from tasks.errors import ConfigError, StorageError

CACHE_VARIABLE = "METAREPAIR_CACHE"
SCHEMES = ("s3", "gs")


@dataclass(frozen=True, order=True)
class RemotePath:
    """An object, or all objects whose names begin alike: `scheme://key`, the bucket being the key's first part.

    Methods are named and behave as pathlib's. Small files are read anew each time; nothing here is cached. Raises
    StorageError, which says what to look at, for all that is no missing file.
    """

    scheme: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str | Path) -> RemotePath:
        return RemotePath(self.scheme, str(PurePosixPath(self.key) / name))

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.scheme, str(PurePosixPath(self.key).parent))

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    def exists(self) -> bool:
        return bool(self._info().type != pa.fs.FileType.NotFound)

    def is_file(self) -> bool:
        return bool(self._info().type == pa.fs.FileType.File)

    def is_dir(self) -> bool:
        return bool(self._info().type == pa.fs.FileType.Directory)

    def mkdir(self, *, parents: bool = True, exist_ok: bool = True) -> None:
        """Nothing: an object store has no folders."""

    def touch(self) -> None:
        self.write_bytes(b"")

    def read_bytes(self) -> bytes:
        with _reaching(self), self._system().open_input_stream(self.key) as stream:
            content: bytes = stream.read()
        return content

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        with _reaching(self), self._system().open_output_stream(self.key) as stream:
            stream.write(content)
        _forget_copies(self)

    def unlink(self, *, missing_ok: bool = False) -> None:
        with _reaching(self):
            try:
                self._system().delete_file(self.key)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def iterdir(self) -> Iterator[RemotePath]:
        return self._listed(recursive=False)

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Of this folder, names alone: a pattern with a slash is refused."""
        assert "/" not in pattern, pattern
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """Of this folder and all below it, by the last part of the name."""
        return (path for path in self._listed(recursive=True) if fnmatchcase(path.name, pattern))

    def size(self) -> int | None:
        """Bytes of an object, None where there is none."""
        info = self._info()
        return int(info.size) if info.type == pa.fs.FileType.File else None

    def _listed(self, *, recursive: bool) -> Iterator[RemotePath]:
        selector = pa.fs.FileSelector(self.key, allow_not_found=True, recursive=recursive)
        with _reaching(self):
            found = self._system().get_file_info(selector)
        return (RemotePath(self.scheme, info.path) for info in found)

    def _info(self) -> Any:
        with _reaching(self):
            return self._system().get_file_info(self.key)

    def _system(self) -> Any:
        return _file_system(self.scheme, self.key.partition("/")[0])


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


@cache
def _file_system(scheme: str, bucket: str) -> Any:
    try:
        return pa.fs.FileSystem.from_uri(f"{scheme}://{bucket}")[0]
    except (OSError, pa.ArrowException) as error:
        raise StorageError(_unreachable(f"{scheme}://{bucket}", error)) from error


@contextmanager
def _reaching(path: RemotePath) -> Iterator[None]:
    """Missing files are FileNotFoundError as ever; all else that a store answers becomes a StorageError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise StorageError(_unreachable(str(path), error)) from error


def _unreachable(where: str, error: Exception) -> str:
    return (
        f"{where} cannot be read or written: {' '.join(str(error).split())}. Look at the bucket's name, the "
        "credentials and the endpoint (AWS_ENDPOINT_URL for S3); then run the same command again to go on."
    )


def cache_folder() -> Path:
    """Where copies of remote files are kept: METAREPAIR_CACHE, else `metarepair` in the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "metarepair"


def local(path: Place) -> Path:
    """A local file with the content of `path`. Raises FileNotFoundError, StorageError.

    A remote file is copied once a node: its copy is named by address, size and time of writing, so a file that was
    replaced is copied anew.
    """
    if isinstance(path, Path):
        return path
    info = path._info()
    if info.type != pa.fs.FileType.File:
        raise FileNotFoundError(f"{path} is not there")
    copy = _copy_of(path, info)
    if not copy.is_file():
        part = _unique(copy)
        part.parent.mkdir(parents=True, exist_ok=True)
        with _reaching(path), path._system().open_input_stream(path.key) as stream, part.open("wb") as sink:
            shutil.copyfileobj(stream, sink, 1 << 22)
        part.replace(copy)
        _forget_copies(path, but=copy)
    return copy


def _copy_of(path: RemotePath, info: Any) -> Path:
    return _copies_of(path) / f"{info.size}-{info.mtime_ns}{path.suffix}"


def _copies_of(path: RemotePath) -> Path:
    digest = hashlib.blake2b(str(path).encode(), digest_size=12).hexdigest()
    return cache_folder() / "objects" / digest


@contextmanager
def writing(path: Place) -> Iterator[Path]:
    """A new local file to fill, which becomes `path` when the block ends and is gone when it raises."""
    part = _unique(path if isinstance(path, Path) else _copies_of(path) / path.name)
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        part.chmod(0o644)  # some writers make it private; all workers must be able to read a shared path
        if isinstance(path, Path):
            part.replace(path)
        else:
            _upload(part, path)
    finally:
        part.unlink(missing_ok=True)


def _upload(part: Path, path: RemotePath) -> None:
    with _reaching(path), part.open("rb") as stream, path._system().open_output_stream(path.key) as sink:
        shutil.copyfileobj(stream, sink, 1 << 22)
    copy = _copy_of(path, path._info())
    part.replace(
        copy
    )  # it need not be fetched again; an older copy of the same size and second would be wrong
    _forget_copies(path, but=copy)


def _forget_copies(path: RemotePath, *, but: Path | None = None) -> None:
    for old in _copies_of(path).glob("*"):
        if old != but and old.suffix != ".tmp":
            old.unlink(missing_ok=True)  # mapped by a reader, it lives on until that one ends


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


def remove_tree(path: Place) -> None:
    """Deletes a folder and all in it; nothing where there is none."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(FileNotFoundError), _reaching(path):
        path._system().delete_dir(path.key)


def copy_file(source: Place, target: Place) -> None:
    """Copies one file; it appears whole."""
    with writing(target) as part:
        shutil.copyfile(local(source), part)

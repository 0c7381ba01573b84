"""Paths in an object store, with the interface of pathlib, and the node's copies of objects.

For credentials, region and endpoint see tasks.storage.paths.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs

from tasks.errors import StorageError

CACHE_VARIABLE = "METAREPAIR_CACHE"


@dataclass(frozen=True, order=True)
class RemotePath:
    """An object, or all objects whose names share a prefix: `scheme://key`, where the key begins with the bucket.

    Methods have the names and the behaviour of pathlib's. Nothing is cached here: files are read again each time.
    Raises FileNotFoundError for a missing file, and StorageError, with what to check, for every other failure.
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
        return bool(self.info().type != pa.fs.FileType.NotFound)

    def is_file(self) -> bool:
        return bool(self.info().type == pa.fs.FileType.File)

    def is_dir(self) -> bool:
        return bool(self.info().type == pa.fs.FileType.Directory)

    def mkdir(self, *, parents: bool = True, exist_ok: bool = True) -> None:
        """Does nothing: an object store has no folders."""

    def touch(self) -> None:
        self.write_bytes(b"")

    def read_bytes(self) -> bytes:
        with reaching(self), self.system().open_input_stream(self.key) as stream:
            content: bytes = stream.read()
        return content

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        with reaching(self), self.system().open_output_stream(self.key) as stream:
            stream.write(content)
        forget_copies(self)

    def unlink(self, *, missing_ok: bool = False) -> None:
        with reaching(self):
            try:
                self.system().delete_file(self.key)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def iterdir(self) -> Iterator[RemotePath]:
        return self._listed(recursive=False)

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Match names in this folder only; the pattern must not contain a slash."""
        assert "/" not in pattern, pattern
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """Match names in this folder and in all folders below it."""
        return (path for path in self._listed(recursive=True) if fnmatchcase(path.name, pattern))

    def size(self) -> int | None:
        """Size of an object in bytes, `None` if there is no such object."""
        info = self.info()
        return int(info.size) if info.type == pa.fs.FileType.File else None

    def objects(self) -> Iterator[tuple[RemotePath, Any]]:
        """All objects below this path, each with pyarrow's FileInfo, from a single listing."""
        infos = self._infos(recursive=True)
        return (
            (RemotePath(self.scheme, info.path), info) for info in infos if info.type == pa.fs.FileType.File
        )

    def _listed(self, *, recursive: bool) -> Iterator[RemotePath]:
        return (RemotePath(self.scheme, info.path) for info in self._infos(recursive=recursive))

    def _infos(self, *, recursive: bool) -> list[Any]:
        selector = pa.fs.FileSelector(self.key, allow_not_found=True, recursive=recursive)
        with reaching(self):
            infos: list[Any] = self.system().get_file_info(selector)
        return infos

    def info(self) -> Any:
        """pyarrow's FileInfo."""
        with reaching(self):
            return self.system().get_file_info(self.key)

    def system(self) -> Any:
        """pyarrow's file system of the bucket."""
        return _file_system(self.scheme, self.key.partition("/")[0])


@cache
def _file_system(scheme: str, bucket: str) -> Any:
    try:
        return pa.fs.FileSystem.from_uri(f"{scheme}://{bucket}")[0]
    except (OSError, pa.ArrowException) as error:
        raise StorageError(_unreachable(f"{scheme}://{bucket}", error)) from error


@contextmanager
def reaching(path: RemotePath) -> Iterator[None]:
    """Let FileNotFoundError pass; turn every other error of the store into a StorageError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise StorageError(_unreachable(str(path), error)) from error


def _unreachable(where: str, error: Exception) -> str:
    return (
        f"{where} cannot be read or written: {' '.join(str(error).split())}. Check the bucket's name, the "
        "credentials and the endpoint (AWS_ENDPOINT_URL for S3); then run the same command again to resume."
    )


def cache_folder() -> Path:
    """The folder for copies of remote files: METAREPAIR_CACHE, else `metarepair` in the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "metarepair"


def copy_of(path: RemotePath, info: Any) -> Path:
    """The path of the node's copy of an object, named by address, size and modification time."""
    return copies_of(path) / f"{info.size}-{info.mtime_ns}{path.suffix}"


def copies_of(path: RemotePath) -> Path:
    """The folder of all copies of an object."""
    digest = hashlib.blake2b(str(path).encode(), digest_size=12).hexdigest()
    return cache_folder() / "objects" / digest


def forget_copies(path: RemotePath, *, but: Path | None = None) -> None:
    """Delete the node's copies of an object, except `but`."""
    for old in copies_of(path).glob("*"):
        if old != but and old.suffix != ".tmp":
            old.unlink(missing_ok=True)  # a reader that has mapped it keeps it until it closes it

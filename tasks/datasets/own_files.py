"""Find the files below a folder that belong to a data set, and record those that are passed over.

Linked folders are followed, as in torchvision's ImageFolder; a link to a folder above itself is passed over, since
following it would never end. Unlike in torchvision, hidden files and folders are passed over, because notebooks, file
managers and archivers leave copies of images there. Pipes, sockets and devices are passed over, because reading a pipe
could wait forever. A dead link is refused, because it may have led to a folder of images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import DataError

# Folders that systems add to users' files: macOS' archiver, Synology's thumbnails, Windows' recycle bin, Linux's fsck.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")
HIDDEN = "hidden"
OTHER_SUFFIX = "with another suffix"
LOOP = "linked to a folder above"
SPECIAL = "neither a file nor a folder"
_SHOWN = 3  # names that are listed for each kind


class IgnoredFiles:
    """A record of files and folders that are not read: how many of each kind, and the first few names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def add(self, kind: str, path: Path) -> None:
        """Record one file or folder; `kind` says why it is skipped."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        names = self._names.setdefault(kind, [])
        if len(names) < _SHOWN:
            inside = path.is_relative_to(self._folder)
            names.append((path.relative_to(self._folder) if inside else path).as_posix())

    def notes(self) -> tuple[str, ...]:
        """One sentence, or none if everything was read."""
        if not self._counts:
            return ()
        parts = [
            f"{count} {kind} ({', '.join(self._names[kind])}{', …' if count > _SHOWN else ''})"
            for kind, count in self._counts.items()
        ]
        return (f"Passed over in {self._folder}: {'; '.join(parts)}.",)


def is_hidden(name: str) -> bool:
    """Whether a file or folder with this name is always passed over."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def entries(folder: Path) -> list[Path]:
    """Files and folders in a folder, sorted by name. Raises DataError if it cannot be listed, or for a dead link."""
    try:
        paths = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise _unlisted(folder, error) from error
    for path in paths:
        if not is_hidden(path.name):
            refuse_dead_link(path)
    return paths


def is_empty(folder: Path) -> bool:
    """Whether a folder is empty. Reads only its first entries, however many there are."""
    try:
        with os.scandir(folder) as contents:
            return next(contents, None) is None
    except OSError as error:
        raise _unlisted(folder, error) from error


def refuse_dead_link(path: Path) -> None:
    """Raise DataError if the path is a link whose target cannot be reached."""
    if not path.is_symlink():
        return
    try:
        path.stat()
    except OSError as error:
        raise DataError(
            f"{path} is a link to {path.readlink()}, which cannot be reached ({error.strerror or error}). Make it "
            "point to an existing file or folder, or remove it."
        ) from error


def iter_files(
    folder: Path, suffixes: tuple[str, ...], passed: IgnoredFiles, *, underscores: bool = True
) -> Iterator[Path]:
    """Yield the files with these suffixes in and below a folder: each folder's own files first, all sorted by name.

    underscores: whether to read names that begin with `_`. Raises DataError for a folder that cannot be listed, and for
    a dead link. A dead link with one of the suffixes is yielded, so that the reader can name and count it.
    """
    try:
        # Every folder that contains this one, by its given path and by its path with links resolved.
        around = {_identity(p) for p in (*folder.absolute().parents, *folder.resolve().parents)}
        if _identity(folder) in around:
            passed.add(LOOP, folder)
            return
        above = {folder: frozenset(around)}
        for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
            inside = above.pop(Path(parent)) | {_identity(Path(parent))}
            below = []
            for path in _visible(parent, folders, passed, underscores):
                if _identity(path) in inside:
                    passed.add(LOOP, path)
                else:
                    below.append(path.name)
                    above[path] = inside
            folders[:] = below
            for path in _visible(parent, names, passed, underscores):
                if _is_special(path):
                    passed.add(SPECIAL, path)
                elif path.name.lower().endswith(suffixes):
                    yield path
                else:
                    refuse_dead_link(path)
                    passed.add(OTHER_SUFFIX, path)
    except OSError as error:
        raise _unlisted(Path(error.filename or folder), error) from error


def _visible(parent: str, names: list[str], passed: IgnoredFiles, underscores: bool) -> list[Path]:
    """The entries of a folder that are not hidden, sorted by name."""
    visible = []
    for name in sorted(names):
        if is_hidden(name) or (name.startswith("_") and not underscores):
            passed.add(HIDDEN, Path(parent, name))
        else:
            visible.append(Path(parent, name))
    return visible


def _is_special(path: Path) -> bool:
    """Whether a path that is not a folder exists and is a pipe, a socket or a device."""
    return not path.is_file() and path.exists()


def _identity(path: Path) -> tuple[int, int]:
    """Device and inode of a folder, which are the same through any link."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _raise(error: OSError) -> None:
    raise error


def _unlisted(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"{folder} cannot be listed ({error.strerror or error}). Make it a readable folder, or remove it."
    )

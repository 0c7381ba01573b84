"""Which files below a folder belong to a data set, and a record of those that were passed over.

Linked folders are followed, as torchvision's ImageFolder follows them. A link to a folder above it would never end, so
it is passed over. Hidden files and folders are passed over, which torchvision does not do: notebooks, file managers and
archivers leave copies of images there. Pipes, sockets and devices are passed over: reading a pipe would wait for ever.
A link that leads nowhere is refused, because it may have led to a folder of images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import DataError

# Folders that a system makes beside a user's files: macOS' archiver, Synology's thumbnails, Windows' bin, Linux's fsck.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")
HIDDEN = "hidden"
OTHER_SUFFIX = "with another suffix"
LOOP = "linked to a folder above"
SPECIAL = "neither a file nor a folder"
_SHOWN = 3  # names that are given of each kind


class PassedOver:
    """What lies below a folder and is not read: how many of each kind, and the first few names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def add(self, kind: str, path: Path) -> None:
        """Notes one file or folder; `kind` is a phrase that says why it is passed over."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        names = self._names.setdefault(kind, [])
        if len(names) < _SHOWN:
            inside = path.is_relative_to(self._folder)
            names.append((path.relative_to(self._folder) if inside else path).as_posix())

    def notes(self) -> tuple[str, ...]:
        """One sentence, or nothing where all was read."""
        if not self._counts:
            return ()
        parts = [
            f"{count} {kind} ({', '.join(self._names[kind])}{', …' if count > _SHOWN else ''})"
            for kind, count in self._counts.items()
        ]
        return (f"Passed over in {self._folder}: {'; '.join(parts)}.",)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left alone wherever it lies."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def entries(folder: Path) -> list[Path]:
    """Files and folders of a folder, sorted by name. Raises DataError where it cannot be listed, or for a dead link."""
    try:
        found = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise _unlisted(folder, error) from error
    for path in found:
        if not is_hidden(path.name):
            refuse_dead_link(path)
    return found


def is_empty(folder: Path) -> bool:
    """Whether nothing lies in a folder. Only its first entries are read, however many there are."""
    try:
        with os.scandir(folder) as found:
            return next(found, None) is None
    except OSError as error:
        raise _unlisted(folder, error) from error


def refuse_dead_link(path: Path) -> None:
    """Raise DataError when the path is a link whose target cannot be reached."""
    if not path.is_symlink():
        return
    try:
        path.stat()
    except OSError as error:
        raise DataError(
            f"{path} is a link to {path.readlink()}, which cannot be reached ({error.strerror or error}). Let it lead "
            "to a file or a folder that is there, or remove it."
        ) from error


def iter_files(
    folder: Path, suffixes: tuple[str, ...], passed: PassedOver, *, underscores: bool = True
) -> Iterator[Path]:
    """Files with these suffixes in a folder and below it: each folder's own files first, all sorted by name.

    underscores: whether names that begin with `_` are read. Raises DataError for a folder that cannot be listed, and
    for a dead link. A dead link with one of the suffixes is among the files, for the reader to name and count.
    """
    try:
        # Every folder that contains this one, both as it was named and with its links resolved.
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


def _visible(parent: str, names: list[str], passed: PassedOver, underscores: bool) -> list[Path]:
    """The entries of a folder that are not hidden, sorted by name."""
    found = []
    for name in sorted(names):
        if is_hidden(name) or (name.startswith("_") and not underscores):
            passed.add(HIDDEN, Path(parent, name))
        else:
            found.append(Path(parent, name))
    return found


def _is_special(path: Path) -> bool:
    """Whether this is there and is no regular file, for what is no folder: a pipe, a socket or a device."""
    return not path.is_file() and path.exists()


def _identity(path: Path) -> tuple[int, int]:
    """The folder itself, whatever links lead to it."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _raise(error: OSError) -> None:
    raise error


def _unlisted(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"{folder} cannot be listed ({error.strerror or error}). Make it a folder that can be read, or remove it."
    )

"""Check the names of files that a stored file lists, which somebody else may have written.

Manifests, checkpoints, results and plans name files. Such a name must stay inside its folder: a run that was
received from others must not read, report or delete anything else.
"""

from __future__ import annotations

from pathlib import Path

from tasks.errors import DataError
from tasks.storage.paths import Place

LONGEST = 1024  # characters; more than any file of ours has


def plain_name(name: object) -> str:
    """Return `name`, a relative path inside its folder. Raises ValueError if it is not one."""
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST or not name.isprintable():
        raise ValueError(f"{str(name)[:80]!r} is not the name of a file")
    if "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{name!r} is not a path inside its folder")
    return name


def remove_listed(folder: Place, name: str) -> None:
    """Delete a file that a stored file of `folder` lists, if it exists.

    Only a regular file inside `folder`, or a link, is deleted. Raises DataError if a folder is there, or if a link
    on the way leads out of `folder`.
    """
    path = folder / plain_name(name)
    if isinstance(path, Path) and isinstance(folder, Path):
        if not path.parent.resolve().is_relative_to(folder.resolve()):
            raise DataError(
                f"{path} is damaged, and it lies outside {folder}: a link leads there. Remove the link, then run the "
                "same command again."
            )
        if path.is_dir() and not path.is_symlink():
            raise DataError(
                f"{path} is a folder, where a file of the stage belongs. Move it away, then run the same command "
                "again."
            )
    path.unlink(missing_ok=True)

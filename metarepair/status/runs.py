"""A path in, the run's folder that it names out; for any other path an error that says what is near."""

from __future__ import annotations

from metarepair.inspection.inspect import READS
from metarepair.inspection.places import GROUPS, folders_in
from tasks.errors import DataError, StorageError, near_names
from tasks.storage.lease import LEASE
from tasks.storage.paths import Place, place

ALLOWED = "Name a run's folder, STORAGE/NAME of its configuration: metarepair status runs/sample"


def open_run_folder(path: str) -> Place:
    """The folder of the run at `path`. Raises DataError when none is there, ConfigError for an unknown scheme."""
    try:
        root = place(path)
        if root.is_dir():
            return _checked(root)
        there = root.exists()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a zero, of no user
        raise DataError(f"{path!r} is no path that can be read ({error}). {ALLOWED}.") from error
    if there:
        raise DataError(f"{root} is a file. {ALLOWED}, or look at it with: metarepair inspect {root}")
    raise DataError(f"{root} is not there{_near(root)} {ALLOWED}.")


def _checked(root: Place) -> Place:
    if root.name in (*GROUPS, "search", "report") and _is_run(root.parent):
        raise DataError(f"{root} is a part of a run. Ask for the whole: metarepair status {root.parent}")
    for group in (root.parent, root.parent.parent, root.parent.parent.parent):
        if group.name in GROUPS and _is_run(group.parent):
            raise DataError(
                f"{root} is one stage of a run. Ask for the whole: metarepair status {group.parent}"
            )
    if _is_run(root):
        return root
    runs = [path.name for path in folders_in(root) if _is_run(path)]
    if runs:
        shown = ", ".join(runs[:10]) + (", …" if len(runs) > 10 else "")
        raise DataError(
            f"{root} is a folder of runs ({shown}). Name one of them: metarepair status {root / runs[0]}"
        )
    if next(iter(root.iterdir()), None) is None:
        raise DataError(f"{root} is empty: no run was begun there. {ALLOWED}.")
    raise DataError(f"{root} is no run. {ALLOWED}.")


def _is_run(root: Place) -> bool:
    """Whether anything is there that a run's driver makes first; a run may be called `compare` itself."""
    names = {path.name for path in root.iterdir()} - {"prepared", "compare"}
    return LEASE in names or READS in names or any(n in names and (root / n).is_dir() for n in GROUPS)


def _near(root: Place) -> str:
    """`; did you mean 'sample'?`, of what stands beside it; a full stop when there is nothing like it."""
    try:
        beside = [path.name for path in folders_in(root.parent)] if root.parent.is_dir() else []
    except (DataError, StorageError):
        beside = []
    near = near_names(root.name, beside)
    if near or not beside:
        return near or "."
    shown = ", ".join(beside[:10]) + (", …" if len(beside) > 10 else "")
    return f"; beside it there are: {shown}."

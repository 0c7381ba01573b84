"""What a path on the command line names: a run, a part of one, or nothing, with an error that says what is near."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.errors import DataError, StorageError, near_names
from tasks.storage.lease import LEASE
from tasks.storage.paths import Place, place
from tasks.storage.stages import LISTED

GROUPS = tuple(stage.group for stage in LISTED)
READS = "d_fail_reads.jsonl"
PARTS = (
    "Name a run's folder (STORAGE/NAME), a folder in it (experiences/CORRUPTION, targets/CORRUPTION, "
    "features/ENVIRONMENT, score, meta/TARGET, repaired/TARGET, prepared/METHOD, compare/TARGET/METHOD/SEED), "
    "or an .arrow, .parquet or .safetensors file in one"
)
RUNS = "Name a run's folder, STORAGE/NAME of its configuration: metarepair status runs/sample"


def open_part(path: str) -> Place:
    """The file or folder at `path`. Raises DataError when there is neither, ConfigError for an unknown scheme."""
    with _readable(path, PARTS):
        root = place(path)
        if root.is_file() or root.is_dir():
            return root
        there = root.exists()
    raise DataError(f"{root} is {'neither a file nor a folder' if there else 'not there'}. {PARTS}.")


def open_run(path: str) -> Place:
    """The folder of the run at `path`. Raises DataError when none is there, ConfigError for an unknown scheme."""
    with _readable(path, RUNS):
        root = place(path)
        if root.is_dir():
            _check_run(root)
            return root
        there = root.exists()
    if there:
        raise DataError(f"{root} is a file. {RUNS}, or look at it with: metarepair inspect {root}")
    raise DataError(f"{root} is not there{_near(root)} {RUNS}.")


def folders_in(folder: Place) -> list[Place]:
    """Its folders by name, without hidden ones. Raises DataError when it cannot be read."""
    try:
        found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        raise unreadable_folder(folder, error) from error
    return sorted(found, key=str)


def unreadable_folder(folder: Place | str, error: OSError) -> DataError:
    """The error for a folder that may not be read."""
    return DataError(f"{folder} cannot be read ({error.strerror}). Permit it, or name another.")


def not_a_part(root: Place, folders: list[Place]) -> DataError:
    """The error for a folder, which has these `folders`, that is neither a run nor a part of one."""
    runs = [path for path in folders if any((path / name).is_dir() for name in GROUPS)]
    if runs:
        return DataError(
            f"{root} is a folder of runs ({_some(runs)}). Name one of them: metarepair inspect {runs[0]}"
        )
    if root.name == "report" and (root / "index.html").exists():
        return DataError(
            f"{root} is a report. Open {root / 'index.html'} in a browser, or inspect the run: {root.parent}"
        )
    if next(iter(root.iterdir()), None) is None:
        return DataError(f"{root} is empty: nothing was written there yet. {PARTS}.")
    return DataError(f"{root} is no run, and no folder of one. {PARTS}.")


@contextmanager
def _readable(path: str, allowed: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a zero, of no user
        raise DataError(f"{path!r} is no path that can be read ({error}). {allowed}.") from error


def _check_run(root: Place) -> None:
    """Raises DataError for a folder that is no run."""
    if root.name in (*GROUPS, "search", "report") and _is_run(root.parent):
        raise DataError(f"{root} is a part of a run. Ask for the whole: metarepair status {root.parent}")
    for group in (root.parent, root.parent.parent, root.parent.parent.parent):
        if group.name in GROUPS and _is_run(group.parent):
            raise DataError(
                f"{root} is one stage of a run. Ask for the whole: metarepair status {group.parent}"
            )
    if _is_run(root):
        return
    runs = [path for path in folders_in(root) if _is_run(path)]
    if runs:
        raise DataError(
            f"{root} is a folder of runs ({_some(runs)}). Name one of them: metarepair status {runs[0]}"
        )
    if next(iter(root.iterdir()), None) is None:
        raise DataError(f"{root} is empty: no run was begun there. {RUNS}.")
    raise DataError(f"{root} is no run. {RUNS}.")


def _is_run(root: Place) -> bool:
    """Whether anything is there that a run's driver makes first; a run may be called `compare` itself."""
    names = {path.name for path in root.iterdir()} - {"prepared", "compare"}
    return LEASE in names or READS in names or any(n in names and (root / n).is_dir() for n in GROUPS)


def _near(root: Place) -> str:
    """`; did you mean 'sample'?`, of what stands beside it; a full stop when there is nothing like it."""
    try:
        beside = folders_in(root.parent) if root.parent.is_dir() else []
    except (DataError, StorageError):
        beside = []
    near = near_names(root.name, [path.name for path in beside])
    return near or (f"; beside it there are: {_some(beside)}." if beside else ".")


def _some(paths: list[Place]) -> str:
    """The names of the first ten."""
    return ", ".join(path.name for path in paths[:10]) + (", …" if len(paths) > 10 else "")

"""Resolve a command-line path to a run or a part of one; errors suggest near names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from metarepair.compare.plan import PLAN
from metarepair.runs.layout import FIX_RECORD, SEEDS
from tasks.errors import DataError, StorageError, near_names
from tasks.storage.lease import LEASE
from tasks.storage.paths import Place, place
from tasks.storage.stages import LISTED

GROUPS = tuple(stage.group for stage in LISTED)
READS = "d_fail_reads.jsonl"
PARTS = (
    "Name a run's folder (STORAGE/NAME), a folder in it (experiences/ENVIRONMENT, targets/ENVIRONMENT, "
    "features/ENVIRONMENT, score, merged/EXPERIENCE, meta/TARGET, repaired/TARGET, prepared/METHOD, "
    "compare/TARGET/METHOD/SEED), "
    "or an .arrow, .parquet or .safetensors file in such a folder"
)
RUNS = "Name a run's folder (STORAGE/NAME in its configuration), for example: metarepair status runs/sample"


def open_part(path: str) -> Place:
    """Return the file or folder at `path`. Raises DataError if there is neither, ConfigError for an unknown scheme."""
    with _readable(path, PARTS):
        root = place(path)
        if root.is_file() or root.is_dir():
            return root
        there = root.exists()
    raise DataError(f"{root} {'is neither a file nor a folder' if there else 'does not exist'}. {PARTS}.")


def open_run(path: str) -> Place:
    """Return the folder of the run at `path`. Raises DataError if there is none, ConfigError for an unknown scheme."""
    with _readable(path, RUNS):
        root = place(path)
        if root.is_dir():
            _check_run(root)
            return root
        there = root.exists()
    if there:
        raise DataError(f"{root} is a file. {RUNS}. To inspect the file: metarepair inspect {root}")
    raise DataError(f"{root} does not exist{_near(root)} {RUNS}.")


def folders_in(folder: Place) -> list[Place]:
    """Return the subfolders of `folder`, sorted, without hidden ones. Raises DataError if it cannot be read."""
    try:
        found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        raise unreadable_folder(folder, error) from error
    return sorted(found, key=str)


def unreadable_folder(folder: Place | str, error: OSError) -> DataError:
    """Return the error for a folder that cannot be read."""
    return DataError(f"{folder} cannot be read ({error.strerror}). Check its permissions, or name another.")


def not_a_part(root: Place, folders: list[Place]) -> DataError:
    """Return the error for a folder that is neither a run nor a part of one. `folders`: its subfolders."""
    runs = [path for path in folders if any((path / name).is_dir() for name in GROUPS)]
    if runs:
        return DataError(
            f"{root} is a folder of runs ({_some(runs)}). Name one of them: metarepair inspect {runs[0]}"
        )
    if root.name in ("report", "compare") and (root / "index.html").exists():
        return DataError(
            f"{root} is a report. Open {root / 'index.html'} in a browser, or inspect the run: "
            f"metarepair inspect {root.parent}"
        )
    if next(iter(root.iterdir()), None) is None:
        return DataError(f"{root} is empty. {PARTS}.")
    return DataError(f"{root} is neither a run nor a folder of a run. {PARTS}.")


@contextmanager
def _readable(path: str, allowed: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, ~ of an unknown user
        raise DataError(f"{path!r} cannot be read ({error}). {allowed}.") from error


def _check_run(root: Place) -> None:
    """Raise DataError for a folder that is not a run. A `fix` knows its folder, whatever its name is."""
    if (root / FIX_RECORD).is_file():
        return
    if root.name in (*GROUPS, "search", "report") and _is_run(root.parent):
        raise DataError(f"{root} is a part of a run. Name the run: metarepair status {root.parent}")
    for group in (root.parent, root.parent.parent, root.parent.parent.parent):
        if group.name in GROUPS and _is_run(group.parent):
            raise DataError(f"{root} is one stage of a run. Name the run: metarepair status {group.parent}")
    if _is_run(root):
        return
    runs = [path for path in folders_in(root) if _is_run(path)]
    if runs:
        raise DataError(
            f"{root} is a folder of runs ({_some(runs)}). Name one of them: metarepair status {runs[0]}"
        )
    if next(iter(root.iterdir()), None) is None:
        raise DataError(f"{root} is empty: no run was started there. {RUNS}.")
    raise DataError(f"{root} is not a run. {RUNS}.")


def _is_run(root: Place) -> bool:
    """Whether the folder holds anything that a run's driver makes first. A run may itself be called `compare`.

    If each seed of a comparison has a run of its own, the driver makes the plan of the comparison first.
    """
    if (root / "compare" / PLAN).is_file() and (root / SEEDS).is_dir():
        return True
    names = {path.name for path in root.iterdir()} - {"prepared", "compare"}
    return (
        FIX_RECORD in names
        or LEASE in names
        or READS in names
        or any(n in names and (root / n).is_dir() for n in GROUPS)
    )


def _near(root: Place) -> str:
    """Return `; did you mean 'sample'?` from the neighbouring folders, or a full stop if there are none."""
    try:
        beside = folders_in(root.parent) if root.parent.is_dir() else []
    except (DataError, StorageError):
        beside = []
    near = near_names(root.name, [path.name for path in beside])
    return near or (f"; its parent folder has: {_some(beside)}." if beside else ".")


def _some(paths: list[Place]) -> str:
    """Return the names of the first ten."""
    return ", ".join(path.name for path in paths[:10]) + (", …" if len(paths) > 10 else "")

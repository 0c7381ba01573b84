"""A path in, everything that can be told of it out."""

from __future__ import annotations

from metarepair.inspection.checks import Checksums, bytes_to_read, damage_of
from metarepair.inspection.facts import Inspection
from metarepair.inspection.files import inspect_file
from metarepair.inspection.places import ALLOWED, find_stages
from metarepair.inspection.stages import stage_facts
from tasks.errors import DataError
from tasks.storage.paths import Place, place

READS = "d_fail_reads.jsonl"


def inspect(path: str) -> Inspection:
    """What is at `path`, here or on an object store. Raises DataError where nothing of a run is.

    Damage raises nothing: it is in what comes back.
    """
    root = _existing(path)
    if root.is_file():
        return inspect_file(root)
    found = find_stages(root)
    checksums = Checksums(bytes_to_read(found.stages))
    stages = tuple(stage_facts(stage, checksums) for stage in found.stages)
    return Inspection(
        path=str(root),
        kind=stages[0].kind if found.kind == "stage" else found.kind,
        size_bytes=sum(found.files.values()),
        damaged=tuple(damage for stage in stages for damage in damage_of(stage)),
        stages=stages,
        d_fail_reads=count_lines(root / READS) if found.kind == "run" and READS in found.files else None,
    )


def _existing(path: str) -> Place:
    try:
        root = place(path)
        if root.is_file() or root.is_dir():
            return root
        there = root.exists()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a zero, of no user
        raise DataError(f"{path!r} is no path that can be read ({error}). {ALLOWED}.") from error
    state = "is neither a file nor a folder" if there else "is not there"
    raise DataError(f"{root} {state}. {ALLOWED}.")


def count_lines(path: Place) -> int | None:
    """Lines of a small log, None when it cannot be read."""
    try:
        return len(path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return None

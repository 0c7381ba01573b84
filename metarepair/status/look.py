"""A run's path in; how far it is, who works on it and what is damaged, out."""

from __future__ import annotations

from metarepair.inspection.inspect import READS, count_lines
from metarepair.inspection.places import stat_files
from metarepair.status.facts import HolderFacts, RunStatus
from metarepair.status.runs import open_run_folder
from metarepair.status.search import look_at_search
from metarepair.status.stages import look_at_stages
from tasks.storage.run_lock import Holder, holder


def status_of(path: str) -> RunStatus:
    """The run at `path`, here or on an object store. Raises DataError where no run is."""
    root = open_run_folder(path)
    held, stats = holder(root), stat_files(root)
    alive = held is not None and held.alive
    search = look_at_search(root, stats, alive=alive)
    found = look_at_stages(root, stats, held.owner if held is not None and alive else None)
    return RunStatus(
        path=str(root),
        holder=None if held is None else _holder_facts(held),
        d_fail_reads=count_lines(root / READS) if READS in stats else None,
        damaged=found.damaged + search.damaged,
        stages=found.stages,
        search=search.status,
        unused=found.unused,
    )


def _holder_facts(held: Holder) -> HolderFacts:
    owner = held.owner
    if owner is None:
        return HolderFacts(alive=held.alive)
    return HolderFacts(
        host=owner.host,
        pid=owner.pid,
        verb=owner.verb,
        since=owner.since,
        last_sign_s=round(owner.age_s, 1),
        alive=held.alive,
    )

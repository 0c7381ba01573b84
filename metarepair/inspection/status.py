"""Report a run's progress from its storage alone: no Ray, no model, nothing changed, nothing hashed.

Only work that would survive if the run were killed now is counted: manifests, sealed parts, checkpoints. File sizes
are compared with the manifests; `metarepair inspect` also compares checksums.

`metarepair status RUN --json` prints one object. Its keys are stable:

    schema_version   1
    path             the run's folder
    state            finished | under way (a process is writing to the run) | unfinished (no process is) | not begun
    holder           null, or {host, pid, verb, since (ISO 8601), last_sign_s (seconds ago), alive}: the process that
                     writes to the run, or that died without releasing it
    d_fail_reads     how often the run's evaluator opened a D_fail; null if the run has no log of it
    damaged          list of {path, state, remedy}; the exit code is 2 unless it is empty
    stages           list of {name (pretrain | mine | features | score | joint | merged | train | kit | repair |
                     report | prepare | compare | hypothesis), state (done | begun | not begun), done, total (of
                     members), seconds_left, members}, members being a list of {path (relative), name (of the
                     environment, target or prepared method, or a seed that has a run of its own, or null), role
                     (experience | target | seed | null), state, done, total (of its units), unit (shards | episodes
                     | rounds | repairs | epochs | fine-tunes | pieces | null), judged (repairs of a comparison,
                     else null), written (ISO 8601, of its newest file), metrics ({name: number}, of its newest
                     checkpoint), seconds_left, passed_over (incomplete checkpoints)}
    search           null, or {state, trials ({finished | stopped early | failed | running | unfinished: count}), total,
                     best, running}, best being null or {name, state, objective}, running (including unfinished
                     trials) a list of {name, rounds, of (total rounds), objective (after these rounds), written}
    unused           list of paths (relative) of environments that are not counted: neither the score nor the plan of a
                     comparison, if written after them, names them

Unknown values are null.
"""

from __future__ import annotations

from metarepair.inspection.facts import HolderFacts, RunStatus
from metarepair.inspection.paths import READS, open_run
from metarepair.inspection.progress import progress_of
from metarepair.inspection.search import search_of
from metarepair.inspection.stored import count_lines
from metarepair.inspection.walk import stat_files
from tasks.storage.run_lock import Holder, holder


def status_of(path: str) -> RunStatus:
    """Return the status of the run at `path`, local or on an object store. Raises DataError if it is not a run."""
    root = open_run(path)
    held, files = holder(root), stat_files(root)
    alive = held is not None and held.alive
    search = search_of(root, files, alive=alive)
    progress = progress_of(root, files, held.owner if held is not None and alive else None)
    return RunStatus(
        path=str(root),
        holder=None if held is None else _holder_facts(held),
        d_fail_reads=count_lines(root / READS) if READS in files else None,
        damaged=progress.damaged + search.damaged,
        stages=progress.stages,
        search=search.status,
        unused=progress.unused,
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

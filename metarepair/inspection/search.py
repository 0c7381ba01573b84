"""Report the progress of a search from these files, if they exist:

search/begun.json                   the settings, including the number of trials
search/trials/<name>/record.json    one trial: its rounds, its objective, whether it has ended
search/trials.parquet               name, state and objective of all trials, once all have ended
search/manifest.json                written last
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from metarepair.inspection.damage import damage_by_size
from metarepair.inspection.facts import BestTrial, Damage, RunningTrial, SearchStatus
from metarepair.inspection.members import moment
from metarepair.inspection.stored import as_object, json_or_none, read_stage, real, section, whole
from metarepair.inspection.walk import Listing, stage_folder, under
from tasks.storage.paths import Place, local
from tasks.storage.stages import BEGUN, SEARCH

TABLE, TRIALS, RECORD = "trials.parquet", "trials", "record.json"
OVER = ("finished", "stopped early", "failed")


@dataclass(frozen=True, kw_only=True)
class SearchProgress:
    """A search's status, None if no search was started, and its damage."""

    status: SearchStatus | None
    damaged: tuple[Damage, ...]


@dataclass(frozen=True, kw_only=True)
class KnownTrial:
    """A trial, read from its record or from its row in the table."""

    name: str
    state: str
    objective: float | None
    rounds: int | None = None
    of: int | None = None


def search_of(root: Place, files: Listing, *, alive: bool) -> SearchProgress:
    """Return the progress of the search in the run at `root`.

    alive: a process is writing to the run, so unfinished trials may be running.
    """
    folder, own = root / SEARCH.folder, under(files, f"{SEARCH.folder}/")
    if not own:
        return SearchProgress(status=None, damaged=())
    stage = read_stage(stage_folder(SEARCH, None, folder=folder, path=SEARCH.folder, files=own))
    trials = _trials(folder, own, going_on="running" if alive else "unfinished")
    counts = Counter(trial.state for trial in trials)
    status = SearchStatus(
        state="begun" if stage.manifest is None else "done",
        trials={word: counts[word] for word in (*OVER, "running", "unfinished") if counts[word]},
        total=_total(folder) if stage.manifest is None else whole(stage.manifest.rows.get("trials")),
        best=_best(trials),
        running=tuple(_running(trial, own) for trial in trials if trial.state not in OVER),
    )
    return SearchProgress(status=status, damaged=tuple(damage_by_size(stage)))


def _trials(folder: Place, files: Listing, *, going_on: str) -> list[KnownTrial]:
    """Return all trials sorted by name, from the table or else from their records."""
    found = _rows(folder / TABLE) if TABLE in files else {}
    begun = {name.split("/")[1] for name in files if name.startswith(f"{TRIALS}/") and name.count("/") > 1}
    for name in begun - found.keys():
        record = f"{TRIALS}/{name}/{RECORD}"
        content = as_object(json_or_none(folder / record)) if record in files else {}
        found[name] = _recorded(name, content, going_on)
    return [found[name] for name in sorted(found)]


def _rows(path: Place) -> dict[str, KnownTrial]:
    """Return the trials in the table that have ended; none if it cannot be read."""
    try:
        rows = pq.read_table(local(path)).to_pylist()
    except (OSError, pa.ArrowException):
        return {}
    return {
        str(row["name"]): KnownTrial(
            name=str(row["name"]), state=row["state"], objective=real(row.get("objective"))
        )
        for row in rows
        if "name" in row and row.get("state") in OVER
    }


def _recorded(name: str, record: Mapping[str, Any], going_on: str) -> KnownTrial:
    over = "finished" if record.get("over") else going_on
    return KnownTrial(
        name=name,
        state="failed" if record.get("error") else over,
        objective=real(record.get("objective")),
        rounds=whole(record.get("rounds")),
        of=whole(record.get("of")) or None,
    )


def _total(folder: Place) -> int | None:
    """Return how many trials there will be; None for a grid, whose settings alone do not determine it."""
    search = section(section(json_or_none(folder / BEGUN), "config"), "search")
    return None if search.get("searcher") == "grid" else whole(search.get("trials"))


def _best(trials: list[KnownTrial]) -> BestTrial | None:
    """Return the best finished trial; if none is finished, the best trial that was stopped early."""
    for state in ("finished", "stopped early"):
        judged = [(t.objective, t) for t in trials if t.state == state and t.objective is not None]
        if judged:
            objective, best = max(judged, key=lambda pair: pair[0])
            return BestTrial(name=best.name, state=state, objective=objective)
    return None


def _running(trial: KnownTrial, files: Listing) -> RunningTrial:
    record = files.get(f"{TRIALS}/{trial.name}/{RECORD}")
    return RunningTrial(
        name=trial.name,
        rounds=trial.rounds,
        of=trial.of,
        objective=trial.objective,
        written=None if record is None else moment(record.written_s),
    )

"""A run's folder and one listing of it in; how far its search is out, from what is there of these:

search/begun.json                   its settings: how many trials
search/trials/<name>/record.json    a trial: its rounds, its objective, whether it is over
search/trials.parquet               name, state and objective of all trials, when they are over
search/manifest.json                last
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from metarepair.inspection.checks import read_promise
from metarepair.inspection.details import real, whole
from metarepair.inspection.facts import Damage
from metarepair.status.facts import BestTrial, RunningTrial, SearchStatus
from metarepair.status.members import Stats, moment
from tasks.storage.manifest import MANIFEST, Manifest
from tasks.storage.paths import Place, local
from tasks.storage.stages import BEGUN

FOLDER, TABLE, TRIALS, RECORD = "search", "trials.parquet", "trials", "record.json"
OVER = ("finished", "stopped early", "failed")


@dataclass(frozen=True, kw_only=True)
class SearchLooked:
    """A search, and what is damaged of it."""

    status: SearchStatus | None
    damaged: tuple[Damage, ...]


@dataclass(frozen=True, kw_only=True)
class KnownTrial:
    """A trial as its record or the table has it."""

    name: str
    state: str
    objective: float | None
    rounds: int | None = None
    of: int | None = None


def look_at_search(root: Place, stats: Stats, *, alive: bool) -> SearchLooked:
    """No status when no search was begun. `alive`: somebody writes in the run, so unfinished trials may be running."""
    prefix = f"{FOLDER}/"
    files = {name.removeprefix(prefix): stat for name, stat in stats.items() if name.startswith(prefix)}
    if not files:
        return SearchLooked(status=None, damaged=())
    folder = root / FOLDER
    manifest, state = read_promise(folder)
    trials = _trials(folder, files, going_on="running" if alive else "unfinished")
    counts = Counter(trial.state for trial in trials)
    status = SearchStatus(
        state="begun" if manifest is None else "done",
        trials={word: counts[word] for word in (*OVER, "running", "unfinished") if counts[word]},
        total=_total(folder) if manifest is None else whole(manifest.rows.get("trials")),
        best=_best(trials),
        running=tuple(_running(trial, files) for trial in trials if trial.state not in OVER),
    )
    return SearchLooked(status=status, damaged=_damage(manifest, files, manifest_damaged=state == "damaged"))


def _trials(folder: Place, files: Stats, *, going_on: str) -> list[KnownTrial]:
    """By name: those of the table as it has them, the others by their records."""
    found = _rows(folder / TABLE) if TABLE in files else {}
    begun = {name.split("/")[1] for name in files if name.startswith(f"{TRIALS}/") and name.count("/") > 1}
    for name in begun - found.keys():
        there = f"{TRIALS}/{name}/{RECORD}" in files
        found[name] = _recorded(name, _json(folder / TRIALS / name / RECORD) if there else {}, going_on)
    return [found[name] for name in sorted(found)]


def _rows(path: Place) -> dict[str, KnownTrial]:
    """The table's trials that are over; none where it cannot be read."""
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
    """How many trials there will be; of a grid the settings alone do not say."""
    settings = _json(folder / BEGUN).get("config")
    search = settings.get("search") if isinstance(settings, dict) else None
    if not isinstance(search, dict) or search.get("searcher") == "grid":
        return None
    return whole(search.get("trials"))


def _best(trials: list[KnownTrial]) -> BestTrial | None:
    """Of the finished ones; of those that were stopped early where none is finished."""
    for state in ("finished", "stopped early"):
        judged = [(t.objective, t) for t in trials if t.state == state and t.objective is not None]
        if judged:
            objective, best = max(judged, key=lambda pair: pair[0])
            return BestTrial(name=best.name, state=state, objective=objective)
    return None


def _running(trial: KnownTrial, files: Stats) -> RunningTrial:
    record = files.get(f"{TRIALS}/{trial.name}/{RECORD}")
    return RunningTrial(
        name=trial.name,
        rounds=trial.rounds,
        of=trial.of,
        objective=trial.objective,
        written=None if record is None else moment(record.written_s),
    )


def _damage(manifest: Manifest | None, files: Stats, *, manifest_damaged: bool) -> tuple[Damage, ...]:
    """By sizes alone."""
    wrong = {MANIFEST: "damaged"} if manifest_damaged else {}
    for name, (size, _) in manifest.files.items() if manifest is not None else ():
        if name not in files:
            wrong[name] = "missing"
        elif files[name].size_bytes != size:
            wrong[name] = "differs"
    mended = "and run `metarepair tune --config FILE` again, which keeps the trials that are over."
    return tuple(
        Damage(
            path=f"{FOLDER}/{name}",
            state=state,
            remedy=f"Delete {' and '.join(dict.fromkeys((f'{FOLDER}/{name}', f'{FOLDER}/{MANIFEST}')))}, {mended}",
        )
        for name, state in wrong.items()
    )


def _json(path: Place) -> Mapping[str, Any]:
    """A small object; empty where it is not there, or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}

"""Write the table of a search's trials as Parquet, CSV and text, its figures, and the best trial's configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from metarepair.config.load import config_text
from metarepair.config.run import Config
from metarepair.reports.figures import save
from metarepair.reports.words import percent
from metarepair.search.figures import alpha_beta, importance_bars, parallel
from metarepair.search.importance import Importance, importance_of
from metarepair.search.space import (
    FREE,
    Dimension,
    dimensions,
    is_free,
    judged_environments,
    search_of,
    trial_config,
)
from metarepair.search.trials import Trial, best_trial, counts, has_objective, is_judged, ranked
from tasks.storage.paths import Place, write_table, write_text

__all__ = ["Trial", "best_trial", "results_table", "trials_table", "write_results"]

SHOWN = 10  # trials in the text table
ERRORS = 3  # errors below it
OBJECTIVES = {
    "validation": "accuracy of a repair on held-out examples of the D_collect of {}",
    "pseudo_targets": "accuracy of a repair on held-out examples of D_collect, mean over the experiences left out in "
    "turn: {}",
}


def write_results(folder: Place, trials: Sequence[Trial], config: Config) -> list[str]:
    """Write trials.parquet, trials.csv, best.yaml and the figures that can be drawn; returns the names of the files."""
    found, best = dimensions(config), _best(trials, config)
    table = trials_table(trials, config)
    files = ["trials.parquet", "trials.csv"]
    for name in files:
        write_table(folder / name, table)
    if best is not None:
        write_text(folder / "best.yaml", _best_yaml(folder / "best.yaml", best, trials, config))
        files.append("best.yaml")
    for name, png in _pictures(trials, found, best):
        save(folder / name, png)
        files.append(name)
    return files


def _pictures(
    trials: Sequence[Trial], found: Sequence[Dimension], best: Trial | None
) -> Iterator[tuple[str, bytes]]:
    """Yield the figures that can be drawn, with file names, of the trials that trained and have an objective."""
    shown = [t for t in trials if has_objective(t) and t.rounds > 0]
    if not shown:
        return
    yield "parallel.png", parallel(shown, found, best, len(trials))
    pictures = {
        "alpha_beta.png": alpha_beta(shown, found, best),
        "importance.png": importance_bars(importance_of(trials, found)),
    }
    yield from ((name, png) for name, png in pictures.items() if png is not None)


def trials_table(trials: Sequence[Trial], config: Config) -> pa.Table:
    """Return a table with one row per trial, best first, and one column per dimension."""
    rows = ranked(trials)
    columns = {
        "trial": pa.array([t.name for t in rows], pa.string()),
        "state": pa.array([t.state for t in rows], pa.string()),
        "objective": pa.array([t.objective if has_objective(t) else None for t in rows], pa.float64()),
        "rounds": pa.array([t.rounds for t in rows], pa.int64()),
        "seconds": pa.array([t.seconds for t in rows], pa.float64()),
    }
    for dimension in dimensions(config):
        kind = _column_type(dimension)
        cells = [_cell(t.drawn.get(dimension.name), kind) for t in rows]
        columns[dimension.name] = pa.array(cells, kind)
    columns["error"] = pa.array([t.error for t in rows], pa.string())
    return pa.table(columns)


def results_table(trials: Sequence[Trial], config: Config) -> str:
    """Return the results as text: the objective, the best trials, errors, and the importance of settings."""
    search, found = search_of(config), dimensions(config)
    judged = ", ".join(judged_environments(config))
    lines = [
        f"{counts(trials)}.",
        f"Objective: {OBJECTIVES[search.objective].format(judged)}.",
    ]
    shown = [t for t in ranked(trials) if has_objective(t)][:SHOWN]
    if shown:
        best = _best(trials, config)
        lines += ["", *_aligned(_text_rows(shown, found, best))]
        lines += ["* the best, written to best.yaml", ""] if best is not None else [""]
    failed = [t for t in trials if t.error is not None]
    lines += [f"{t.name}: {' '.join(str(t.error).split())}" for t in failed[:ERRORS]]
    if len(failed) > ERRORS:
        lines.append(f"… and {len(failed) - ERRORS} more errors, in trials.csv.")
    return "\n".join([*lines, _importance_words(importance_of(trials, found))])


def _best(trials: Sequence[Trial], config: Config) -> Trial | None:
    """Return the best trial whose settings make a valid run."""
    return best_trial([t for t in trials if is_judged(t) and trial_config(config, t.drawn) is not None])


def _best_yaml(path: Place, best: Trial, trials: Sequence[Trial], config: Config) -> str:
    settings, search = trial_config(config, best.drawn), search_of(config)
    assert settings is not None  # `_best` chose it
    assert best.objective is not None
    judged = ", ".join(judged_environments(config))
    drawn = ", ".join(f"{name}={_words(value)}" for name, value in best.drawn.items())
    header = [
        f"The best trial of `metarepair tune`, searcher {search.searcher}, scheduler {search.scheduler}.",
        f"Trial:     {best.name}, {best.state} after {best.rounds} rounds, of {counts(trials)}",
        f"Drawn:     {drawn}",
        f"Objective: {percent(best.objective)} % {OBJECTIVES[search.objective].format(judged)}",
        f"Command:   metarepair run --config {path}",
    ]
    return "".join(f"# {' '.join(line.split(chr(10)))}\n" for line in header) + config_text(settings)


def _column_type(dimension: Dimension) -> pa.DataType:
    if dimension.kind == "integers":
        return pa.int64()
    if dimension.kind != "choice":
        return pa.float64()
    kinds = {type(value) for value in dimension.values if value is not None}
    numbers = {frozenset({bool}): pa.bool_(), frozenset({int}): pa.int64()}
    if kinds and kinds <= {int, float} and float in kinds:
        return pa.float64()
    return numbers.get(frozenset(kinds), pa.string())


def _cell(value: Any, kind: pa.DataType) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value) if kind == pa.string() else float(value) if kind == pa.float64() else value


def _text_rows(shown: Sequence[Trial], found: Sequence[Dimension], best: Trial | None) -> list[list[str]]:
    """Return the header and the rows of cells; the experiences of a free subset share one column."""
    settings = [d.name for d in found if not is_free(d.name)]
    free = [d.name for d in found if is_free(d.name)]
    header = [
        "trial",
        "objective %",
        "state",
        "rounds",
        "seconds",
        *settings,
        *(["experiences"] if free else []),
    ]
    rows = [
        [
            trial.name + (" *" if best is not None and trial.name == best.name else ""),
            percent(trial.objective or 0.0),
            trial.state,
            str(trial.rounds),
            f"{trial.seconds:.0f}",
            *(_words(trial.drawn.get(name)) for name in settings),
            *([_taken(trial.drawn, free)] if free else []),
        ]
        for trial in shown
    ]
    return [header, *rows]


def _taken(drawn: Mapping[str, Any], free: Sequence[str]) -> str:
    return ", ".join(name.removeprefix(FREE) for name in free if drawn.get(name)) or "none"


def _words(value: Any) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_words, value))}]"
    return "—" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _importance_words(found: Importance) -> str:
    if found.why_none is not None:
        return f"Importance of the settings is left out: {found.why_none}."
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found.shares.items())
    return f"Importance for being among the best (PED-ANOVA, {found.trials} trials): {shares}."

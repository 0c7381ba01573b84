"""Log the progress of a search: a table that a terminal redraws, plain lines elsewhere."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune import Callback

from distributed.search.draws import OBJECTIVE, OVER, ROUND, drawn_of
from metarepair.runs.progress import Pace, duration, is_drawn, log_step
from metarepair.search.space import Dimension

STATES = ("running", "waiting", "finished", "stopped early", "failed")
ROWS = 12  # trials in the table: the running ones, then the best


class SearchProgress(Callback):  # type: ignore[misc]  # Ray ships no types
    """Logs a search of `trials` trials of up to `rounds` rounds each. Tune pickles it to restore it with the search."""

    def __init__(self, dimensions: Sequence[Dimension], *, trials: int, rounds: int) -> None:
        self.dimensions, self.trials, self.rounds = tuple(dimensions), trials, rounds
        self._first: int | None = None  # rounds done before this run; this and those below are set by `setup`
        self._started, self._pace = 0.0, Pace(0.0)

    def setup(self, **_info: Any) -> None:
        self._first, self._started = None, time.monotonic()
        self._pace = Pace(float("-inf"))

    def on_step_end(self, trials: Sequence[Any], **_info: Any) -> None:
        """Log a line if one is due."""
        if self._first is None:
            self._first = sum(map(_round, trials))
        self._log(trials, over=False)

    def on_experiment_end(self, trials: Sequence[Any], **_info: Any) -> None:
        self._log(trials, over=True)

    def _log(self, trials: Sequence[Any], *, over: bool) -> None:
        now = time.monotonic()
        level = self._pace.level(now, over=over)
        if level is None:
            return
        text = self.line(trials, now)
        if is_drawn():
            width = shutil.get_terminal_size().columns - 1  # a line that wraps would take two lines to redraw
            text = "\n".join(line[:width] for line in self.table(trials, now))
        log_step(level, text, "search", over=over)

    def line(self, trials: Sequence[Any], now: float) -> str:
        """`search: 2 of 8 trials, 2 running; 9 of 48 rounds, 0.5 rounds/s, 1 min 18 s left; best 61.0% trial-0002`."""
        return "; ".join(self._words(trials, now))

    def table(self, trials: Sequence[Any], now: float) -> list[str]:
        """The same as separate lines, then the trials: the running ones, then the others, each best first."""
        order = sorted(trials, key=lambda t: (_state(t) != "running", -_score(t), str(t)))
        head = f"  {'trial':12s} {'state':14s} {'rounds':>9s} {'objective':>10s}  settings"
        rows = [
            f"  {t!s:12s} {_state(t):14s} {f'{_round(t)}/{self._rounds_of(t)}':>9s} {_objective(t):>10s}  "
            f"{self._settings(t)}"
            for t in order[:ROWS]
        ]
        more = [f"  and {len(order) - ROWS} more"] if len(order) > ROWS else []
        return [*self._words(trials, now), head, *rows, *more]

    def _words(self, trials: Sequence[Any], now: float) -> list[str]:
        """Trials by state; rounds, rate and time left; the best trial so far, if there is one."""
        counts = Counter(map(_state, trials))
        counts["waiting"] += self.trials - len(trials)  # not drawn yet
        over = sum(counts[state] for state in STATES[2:])
        states = [f"{counts[state]} {state}" for state in STATES if counts[state] and state != "finished"]
        done, total = sum(map(_round, trials)), self._rounds_in_all(trials)
        rate = (done - (self._first or 0)) / max(now - self._started, 1e-9)
        left = f"{duration((total - done) / rate if rate else float('inf'))} left"
        took = f"took {duration(now - self._started)}"
        best = max((t for t in trials if _score(t) >= 0), key=_score, default=None)
        return [
            ", ".join([f"search: {over} of {self.trials} trials", *states]),
            f"{done} of {total} rounds, {rate:.3g} rounds/s, {left if over < self.trials else took}",
            *([] if best is None else [f"best {_objective(best)} {best} ({self._settings(best)})"]),
        ]

    def _rounds_in_all(self, trials: Sequence[Any]) -> int:
        """The rounds that ended trials have done, plus the most that the others may do."""
        known = sum(_round(t) if _state(t) in STATES[2:] else self._rounds_of(t) for t in trials)
        return known + (self.trials - len(trials)) * self.rounds

    def _rounds_of(self, trial: Any) -> int:
        return int(_reported(trial).get("rounds") or self.rounds)

    def _settings(self, trial: Any) -> str:
        drawn = drawn_of(self.dimensions, trial.config)
        return ", ".join(f"{name} {_short(value)}" for name, value in drawn.items())


def _reported(trial: Any) -> Mapping[str, Any]:
    """A trial's last report, empty before the first."""
    return trial.last_result or {}


def _round(trial: Any) -> int:
    return int(_reported(trial).get(ROUND, 0))


def _state(trial: Any) -> str:
    report = _reported(trial)
    if trial.status == "ERROR" or report.get("failed"):
        return "failed"
    if trial.status == "TERMINATED":
        if report.get(OVER):
            return "finished"
        return "stopped early" if report.get("done") else "waiting"  # waiting: the whole search was stopped
    return "running" if trial.status == "RUNNING" else "waiting"


def _score(trial: Any) -> float:
    """The objective, or -1, below any other, if there is none."""
    return float(_reported(trial).get(OBJECTIVE, -1.0)) if _state(trial) != "failed" else -1.0


def _objective(trial: Any) -> str:
    return f"{_score(trial):.1%}" if _score(trial) >= 0 else "-"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

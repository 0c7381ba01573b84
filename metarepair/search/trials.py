"""The trials of a search, their ranking, and the best one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

TrialState = Literal["finished", "stopped early", "failed", "unfinished"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The values that one trial drew, and its result.

    objective: a fraction, higher is better; None if it was never judged. rounds, seconds: of all its training. A trial
    with no experience to learn from has objective 0 after 0 rounds.
    """

    name: str
    state: TrialState
    objective: float | None
    rounds: int
    seconds: float
    drawn: Mapping[str, Any]
    error: str | None


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the highest objective; on a tie, the one with the fewest rounds, then by name.

    Trials that were stopped early count only if none is finished, trials without a round of training never.
    """
    able = [t for t in ranked(trials) if is_judged(t) and t.rounds > 0]
    return able[0] if able else None


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials in the order finished, stopped early, unfinished, failed; within each, the best first."""
    order = ("finished", "stopped early", "unfinished", "failed")
    assert set(order) == set(get_args(TrialState))
    return sorted(
        trials,
        key=lambda t: (
            order.index(t.state),
            not has_objective(t),
            -(t.objective or 0.0) if has_objective(t) else 0.0,
            t.rounds,
            t.name,
        ),
    )


def has_objective(trial: Trial) -> bool:
    """Whether the trial was judged, with a finite objective."""
    return trial.objective is not None and math.isfinite(trial.objective)


def is_judged(trial: Trial) -> bool:
    """Whether the trial finished or was stopped early, with an objective."""
    return has_objective(trial) and trial.state in ("finished", "stopped early")


def counts(trials: Sequence[Trial]) -> str:
    """Return the number of trials by state, such as `12 trials: 9 finished, 2 stopped early, 1 failed`."""
    states = [t.state for t in trials]
    found = [f"{states.count(state)} {state}" for state in get_args(TrialState) if state in states]
    return f"{len(trials)} trial{'s' * (len(trials) != 1)}" + (f": {', '.join(found)}" if found else "")

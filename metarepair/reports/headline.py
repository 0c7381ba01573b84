"""Say on the first screen of a report what an owner decides by: adopt or keep, why, and three numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metarepair.evaluation.bounds import share_interval
from metarepair.evaluation.side_effects import CLEAN, TARGET
from metarepair.reports.outcome import Outcome, knows_only_failures, lost_words, outcome_of
from metarepair.reports.side_effects import shown_effects
from metarepair.reports.table import Result, verdict
from metarepair.reports.words import method_words, percent, points, signed
from metarepair.runs.layout import Run

ADOPT, CHECK = "Adopt the repaired model", "Adopt the repaired model after a check"
KEEP, NOT, OPEN = "Keep your model", "Do not adopt the repaired model", "Decide"
NO_LIMITS = "No limits were set, so nothing was chosen."
KINDS = {ADOPT: "adopt", CHECK: "check", KEEP: "keep", NOT: "not", OPEN: "open"}  # CSS classes


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number of the first screen with its 95% interval, as text."""

    name: str
    value: str
    interval: str


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What the first screen says. kind: its CSS class."""

    decision: str
    sentences: tuple[str, ...]
    numbers: tuple[Number, ...]

    @property
    def kind(self) -> str:
        return KINDS[self.decision]


def headline_of(run: Run, result: Result) -> Headline:
    """Return the first screen of a target's report.

    Without limits nothing was chosen, and unless a class is lost the decision is left to the reader. Numbers of an
    older version, which kept no side effects, are left out.
    """
    shown = shown_effects(run, result)
    outcome = outcome_of(result) if "choice" in result else None
    lost = [] if shown is None else lost_words(shown.row)
    decision = _decision(outcome, lost=bool(lost))
    if shown is None:
        return Headline(decision=decision, sentences=tuple(verdict(result)[:1]), numbers=())
    target, clean = shown.by_set[TARGET], shown.by_set[CLEAN]
    failures = knows_only_failures(result)
    where = "failures (all that judge are failures)" if failures else "images of the environment"
    told = (
        f"Repaired ({method_words(shown.row['method'])}), the model gets {_of_100(target['after'])} of 100 {where} "
        f"right, before {_of_100(target['before'])}; of 100 clean images {_of_100(clean['after'])}, before "
        f"{_of_100(clean['before'])}."
    )
    doubts = (NO_LIMITS,) if outcome is None else outcome.doubts
    return Headline(
        decision=decision,
        sentences=(*lost, told, *doubts),
        numbers=(
            _accuracy("Failures" if failures else "Environment", target),
            _accuracy("Clean images", clean),
            _broken(clean),
        ),
    )


def _decision(outcome: Outcome | None, *, lost: bool) -> str:
    if outcome is None:
        return NOT if lost else OPEN
    if outcome.kept or not outcome.advised:
        return KEEP if outcome.kept else NOT
    return CHECK if outcome.doubts else ADOPT


def _of_100(share: float) -> str:
    return f"{100 * share:.0f}"


def _accuracy(name: str, found: Mapping[str, Any]) -> Number:
    low, high = (signed(100 * found[end]) for end in ("low", "high"))
    return Number(
        name=f"{name}, % right",
        value=f"{percent(found['before'])} → {percent(found['after'])}",
        interval=f"{points(found['gain'])}, 95% interval {low} to {high}; {found['images']:,} images",
    )


def _broken(found: Mapping[str, Any]) -> Number:
    """The share of clean images, right before, that are wrong after (Wilson's interval)."""
    right = round(found["before"] * found["images"])
    if not right:
        return Number(name="Clean images broken, %", value="—", interval="none was right before")
    low, high = share_interval(found["broken"], right)
    return Number(
        name="Clean images broken, %",
        value=percent(found["broken"] / right),
        interval=f"95% interval {percent(low)} to {percent(high)}; {found['broken']:,} of {right:,}",
    )

"""Estimate from judged trials how much each dimension mattered for being among the best.

Source: PED-ANOVA (Watanabe, Bansal & Hutter, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
Subspaces", IJCAI 2023), as implemented by Optuna: the divergence of a dimension's values among the best trials from
those among all trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from metarepair.search.space import Dimension
from metarepair.search.trials import Trial, is_judged

BEST = 0.25  # share of the trials that count as the best
FEWEST = 20  # trials, so that five are among the best, as Optuna advises


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Importance of each dimension, largest first, with sum 1, and the number of trials; or why there is none."""

    shares: dict[str, float]
    trials: int
    why_none: str | None = None


def importance_of(trials: Sequence[Trial], dimensions: Sequence[Dimension]) -> Importance:
    """Return the importance of all dimensions that took more than one value; `why_none` says why there is none."""
    judged = [t for t in trials if is_judged(t) and all(d.name in t.drawn for d in dimensions)]
    if len(judged) < FEWEST:
        reason = f"{len(judged)} trials have an objective, and {FEWEST} are needed"
        return Importance(shares={}, trials=len(judged), why_none=reason)
    varied = [d for d in dimensions if len({repr(t.drawn[d.name]) for t in judged}) > 1]
    objectives = sorted((t.objective or 0.0 for t in judged), reverse=True)
    if not varied or objectives[-(-len(judged) // int(1 / BEST)) - 1] == objectives[-1]:
        reason = f"the {len(judged)} trials do not differ enough"
        return Importance(shares={}, trials=len(judged), why_none=reason)
    shares = _ped_anova(judged, varied)
    return Importance(shares=shares, trials=len(judged))


def _ped_anova(judged: Sequence[Trial], varied: Sequence[Dimension]) -> dict[str, float]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # Optuna logs every new study
    try:
        study = optuna.create_study(direction="maximize")
        distributions = {d.name: _distribution(d, [t.drawn[d.name] for t in judged]) for d in varied}
        for trial in judged:
            drawn = {d.name: _value(d, trial.drawn[d.name]) for d in varied}
            study.add_trial(
                optuna.create_trial(params=drawn, distributions=distributions, value=trial.objective)
            )
        return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=BEST)))
    finally:
        optuna.logging.set_verbosity(before)


def _distribution(dimension: Dimension, drawn: Sequence[Any]) -> BaseDistribution:
    if dimension.kind == "choice":
        every = dict.fromkeys(_value(dimension, v) for v in (*dimension.values, *drawn))
        return CategoricalDistribution(list(every))
    low, high = min(dimension.values[0], *drawn), max(dimension.values[1], *drawn)
    if dimension.kind == "integers":
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=dimension.kind == "log_uniform")


def _value(dimension: Dimension, value: Any) -> Any:
    """Return a choice as text, since Optuna's categories are plain values; a number as it is."""
    if dimension.kind == "choice":
        return repr(value)
    return int(value) if dimension.kind == "integers" else float(value)

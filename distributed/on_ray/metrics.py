"""A training's rounds and the deaths of actors in; counters and gauges for Ray's dashboard out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any


@cache
def _metric(kind: str, name: str, description: str) -> Any:
    """One of each name in a process: Ray warns of a second."""
    from ray.util import metrics

    return getattr(metrics, kind)(name, description=description)


def count_round(metrics: Mapping[str, float], episodes: Sequence[Mapping[str, float]]) -> None:
    """Speed and skipped episodes of a round of meta-training."""
    for name, what in (("tasks_per_s", "Tasks"), ("episodes_per_s", "Episodes")):
        _metric("Gauge", f"metarepair_{name}", f"{what} of meta-training in a second.").set(metrics[name])
    _metric("Counter", "metarepair_episodes", "Episodes of meta-training.").inc(len(episodes))
    skipped = sum("skipped" in e for e in episodes)
    if skipped:
        _metric("Counter", "metarepair_episodes_skipped", "Episodes that were not finite.").inc(skipped)


def count_restart_of_actor() -> None:
    """Called by an actor that was made again after a death."""
    _metric("Counter", "metarepair_actor_restarts", "Actors that died and were started again.").inc()

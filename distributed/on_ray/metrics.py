"""Report training rounds and actor restarts as counters and gauges on Ray's dashboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any


@cache
def _metric(kind: str, name: str, description: str) -> Any:
    """The metric of this name, created once per process: Ray warns about a second one."""
    from ray.util import metrics

    return getattr(metrics, kind)(name, description=description)


def count_round(metrics: Mapping[str, float], episodes: Sequence[Mapping[str, float]]) -> None:
    """Report the speed and the skipped episodes of a round of meta-training."""
    for name, what in (("tasks_per_s", "tasks"), ("episodes_per_s", "episodes")):
        _metric("Gauge", f"metarepair_{name}", f"Meta-training {what} per second.").set(metrics[name])
    _metric("Counter", "metarepair_episodes", "Meta-training episodes.").inc(len(episodes))
    skipped = sum("skipped" in e for e in episodes)
    if skipped:
        _metric("Counter", "metarepair_episodes_skipped", "Episodes that were not finite.").inc(skipped)


def count_restart_of_actor() -> None:
    """Count a restart. Called by an actor that Ray restarted after it died."""
    _metric("Counter", "metarepair_actor_restarts", "Actors that died and were restarted.").inc()

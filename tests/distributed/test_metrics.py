"""A node exports speed, skipped episodes and actor restarts in the form that Prometheus reads."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from distributed.on_ray.metrics import count_round
from distributed.on_ray.pool import map_items
from waiting import wait_until

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def dying_once(marker: Path) -> Callable[[int], int]:
    """Return a function whose process ends at the first item, the first time only."""
    import os

    def work(item: int) -> int:
        if not marker.exists():
            marker.touch()
            os._exit(1)
        return item

    return work


def test_a_node_exports_speed_episodes_and_actor_restarts(cluster: None, tmp_path: Path) -> None:
    marker = tmp_path / "died"
    assert dict(map_items(lambda: dying_once(marker), [3], workers=1)) == {3: 3}
    for episodes in ([{"episode": 1.0}], [{"episode": 2.0}, {"episode": 3.0, "skipped": 1.0}]):
        count_round({"tasks_per_s": 8.0, "episodes_per_s": 2.0}, episodes)
    wanted = {
        "ray_metarepair_tasks_per_s": 8.0,
        "ray_metarepair_episodes_per_s": 2.0,
        "ray_metarepair_episodes_total": 3.0,
        "ray_metarepair_episodes_skipped_total": 1.0,
        "ray_metarepair_actor_restarts_total": 1.0,
    }
    wait_until(
        lambda: wanted.items() <= scraped().items(),
        f"the metrics {wanted}",
        output=lambda: str(scraped()),
        every_s=0.5,
    )
    found = scraped()
    assert wanted.items() <= found.items(), found


def scraped() -> dict[str, float]:
    """Return this project's metrics from the cluster's only node, by name."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    ours = (line for line in lines if line.startswith("ray_metarepair"))
    return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in ours}

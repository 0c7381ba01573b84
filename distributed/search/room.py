"""Compute what Ray reserves for each trial of a search, and how many trials fit at once."""

from __future__ import annotations

import math
from typing import Any

from distributed.on_ray.cluster import check_room, trainings_that_fit, worker_resources
from metarepair.config.ray import RayConfig
from metarepair.config.run import Config
from metarepair.search.space import search_of
from tasks.errors import ConfigError

HEAD = "node:__internal_head__"  # Ray's own resource of the head node, 1 in total
TRAINS_OWN = 0.003  # share of HEAD left to each run of Ray Train, whose placement group cleaner takes 0.001


def trial_resources(config: Config) -> dict[str, float]:
    """The resources that Tune reserves for a trial; with `workers`, only a share of the head node.

    With `workers`, the trial's worker group makes its own reservation. The share admits `trials_at_once` trials, and
    leaves Ray Train what it takes of the same resource.
    """
    if config.workers == 0:
        return worker_resources(config)
    at_once = trials_at_once(config)
    return {HEAD: max(math.floor(1e4 * (1 - TRAINS_OWN * (at_once + 1)) / at_once), 10) / 1e4}


def trials_at_once(config: Config) -> int:
    """The number of trials that the cluster has room for, at most search.max_concurrent."""
    return min(trainings_that_fit(config), search_of(config).max_concurrent or trainings_that_fit(config))


def placement(config: Config) -> dict[str, Any]:
    """The settings that an unfinished search must keep to be resumed.

    Tune keeps each trial's resources, and trials with old and new resources could wait for each other.
    """
    return {"workers": config.workers, "device": config.device, "resources": worker_resources(config)}


def cluster_settings(config: Config) -> Config:
    """The settings to connect to Ray with. It runs the trials with workers=0 too, each in its own process."""
    if config.workers > 0:
        return config
    return config.model_copy(update={"workers": 1, "device": "cpu", "ray": RayConfig()})


def check_trial_fits(config: Config) -> None:
    """Raise ConfigError if the cluster still cannot place a single trial after `ray.wait_s` seconds."""
    search = search_of(config)
    if search.scheduler == "pbt" and search.max_concurrent is not None and config.workers == 0:
        raise ConfigError(
            f"search.max_concurrent={search.max_concurrent}: scheduler: pbt keeps its whole population, and with "
            "workers=0 only the cluster's resources limit how many trials run. Omit it, or set workers=1."
        )
    if config.workers > 0:
        check_room(config)
        return
    try:
        check_room(config.model_copy(update={"workers": 1}))
    except ConfigError as error:
        import ray

        wanted, has = worker_resources(config), ray.cluster_resources()
        asked = " and ".join(f"{amount:g} {kind}s" for kind, amount in wanted.items())
        there = " and ".join(f"{has.get(kind, 0):g} {kind}s" for kind in wanted)
        gpu = ", lower ray.gpus_per_worker, set device=cpu" if "GPU" in wanted else ""
        raise ConfigError(
            f"A trial of this search needs {asked} on one node, the cluster has {there} in all. Lower "
            f"ray.cpus_per_worker{gpu}, or set ray.wait_s to the seconds that an autoscaling cluster needs to grow."
        ) from error

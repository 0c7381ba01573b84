"""An address or none in, a connection to Ray out; what was started here is stopped here.

What was asked for is set against what the cluster has before anything is begun: Ray itself would wait for ever.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed.on_ray.local_ray import start_local_ray
from distributed.on_ray.own_packages import worker_options
from distributed.on_ray.ray_words import failures_of_ray_told, words_of
from metarepair.config.run import Config
from tasks.errors import ConfigError, UserError

logger = logging.getLogger(__name__)
POLL_S = 1.0
KNOCK_S = 10.0


@contextmanager
def connected(config: Config, address: str | None) -> Iterator[None]:
    """Ray for the time of the block; nothing at all when `workers` is 0.

    A cluster is joined at `address` or RAY_ADDRESS; otherwise one is started on this machine and stopped again.
    Raises UserError when no cluster answers, WorkerError when Ray itself fails meanwhile, ConfigError when it has too
    few CPUs or GPUs for what is asked, or when an address is given and no workers are.
    """
    if config.workers == 0:
        if address:
            raise ConfigError(
                f"--address {address} joins a Ray cluster, and workers=0 does without Ray: nothing would run there. "
                "Say how many workers to use (--set workers=2), or leave --address out."
            )
        yield
        return
    # The controller polls this often; a report waits for the poll.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Training workers stay in the driver's folder: paths of the settings and the user's modules are relative to it.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # A thread that is left to end by itself may call Ray after it was stopped, and Ray would start another one for it.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    import ray

    if ray.is_initialized():
        check_room(config)
        yield
        return
    remote = address or os.environ.get("RAY_ADDRESS")
    options = worker_options(str(Path.cwd()), sys.path) | _log_options()
    if remote:
        _join(remote, options)
    else:
        start_local_ray(options)
    try:
        with failures_of_ray_told():
            check_room(config)
            yield
    finally:
        ray.shutdown()


def _log_options() -> dict[str, object]:
    """Options of `ray.init`: with --verbose, Ray's own lines and what its workers print are shown, too."""
    shown = logger.isEnabledFor(logging.DEBUG)
    return {"logging_level": "info" if shown else "warning", "log_to_driver": shown}


def _join(address: str, options: Mapping[str, object]) -> None:
    """Connects to the cluster at `address`. Raises UserError with what Ray says where that fails."""
    import ray

    try:
        _knock(address)
        ray.init(address=address, **options)
    except Exception as error:
        ray.shutdown()
        raise UserError(
            f"The Ray cluster at {address} could not be joined ({words_of(error)}). Start one (`ray start --head`), "
            "correct --address, or set workers=0 to do without."
        ) from error


def _knock(address: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT, which Ray would try for minutes to find out."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


def gpus_per_worker(config: Config) -> float:
    """GPUs that each worker asks for: none but with device: cuda."""
    return config.ray.gpus_per_worker if config.device == "cuda" else 0.0


def worker_resources(config: Config) -> dict[str, float]:
    """What Ray reserves for each training worker."""
    gpus = gpus_per_worker(config)
    return {"CPU": config.ray.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


def check_room(config: Config) -> None:
    """Raises ConfigError when the cluster cannot place the workers asked for, after `ray.wait_s` seconds of waiting."""
    import ray

    deadline = time.monotonic() + config.ray.wait_s
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        lacking = _lacking(config, nodes)
        if lacking is None:
            return
        if time.monotonic() >= deadline:
            raise ConfigError(lacking)
        time.sleep(POLL_S)


def places(config: Config) -> int:
    """How many trainings of `workers` workers the cluster has room for at once; at least 1."""
    return max(1, single_places(config) // max(config.workers, 1))


def single_places(config: Config) -> int:
    """How many single workers the cluster has room for at once; at least 1."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return max(1, _fitting(worker_resources(config), nodes))


def _fitting(worker: Mapping[str, float], nodes: list[dict[str, Any]]) -> int:
    """Workers that fit; a worker is on one node."""
    # A tenth part taken ten times leaves a little more or less than nothing.
    return sum(
        min(math.floor(node.get(kind, 0) / amount + 1e-6) for kind, amount in worker.items())
        for node in nodes
    )


def _lacking(config: Config, nodes: list[dict[str, Any]]) -> str | None:
    """What to say where fewer workers fit than are needed; None where enough do."""
    worker, needed = worker_resources(config), config.ray.min_workers or config.workers
    fitting = _fitting(worker, nodes)
    if fitting >= needed:
        return None
    has = {kind: sum(node.get(kind, 0) for node in nodes) for kind in worker}
    asked = " and ".join(f"{needed * amount:g} {kind}s" for kind, amount in worker.items())
    there = " and ".join(f"{amount:g} {kind}s" for kind, amount in has.items())
    split = ""
    if all(has[kind] >= needed * amount for kind, amount in worker.items()):
        split = f", but no more than {fitting} workers fit on its {len(nodes)} nodes, since a worker is on one of them"
    remedy = f"Set workers={fitting} or less" if fitting else "Set workers=0 to do without Ray"
    less = [f"ray.{kind.lower()}s_per_worker lower" for kind in worker]
    others = ", ".join([*less, *(["device=cpu"] if "GPU" in worker else [])])
    return (
        f"workers={config.workers} needs {asked}, the cluster has {there}{split}. {remedy}, {others}, "
        "or ray.wait_s to the seconds that an autoscaling cluster needs to grow."
    )

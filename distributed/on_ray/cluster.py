"""Connect to a Ray cluster, or start Ray on this machine and stop it at the end.

The requested resources are checked against the cluster's before any work starts: Ray itself would wait forever for
resources that the cluster does not have.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from distributed.on_ray.local_ray import local_ray, warn_of_readable_token
from distributed.on_ray.own_packages import worker_options
from distributed.on_ray.ray_words import raise_ray_failures, words_of
from metarepair.config.run import Config
from tasks.errors import ConfigError, UserError

logger = logging.getLogger(__name__)
POLL_S = 1.0
KNOCK_S = 10.0
ANSWER_S = 30.0
STOPPING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@contextmanager
def connected(config: Config, address: str | None) -> Iterator[None]:
    """Keep a connection to Ray open for the block; do nothing if `workers` is 0.

    Join the cluster at `address` or RAY_ADDRESS if one is given; otherwise start Ray on this machine and stop it
    after the block. Raises UserError if no cluster answers, WorkerError if Ray itself fails inside the block,
    ConfigError if the cluster has too few CPUs or GPUs, or if an address is given and `workers` is 0.
    """
    if config.workers == 0:
        if address:
            raise ConfigError(
                f"--address {address} joins a Ray cluster, but workers=0 runs without Ray. "
                "Set the number of workers (--set workers=2), or omit --address."
            )
        yield
        return
    # Ray Train's controller polls at this interval, and each report waits for the next poll.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Training workers stay in the driver's folder: paths in the settings and the user's modules are relative to it.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # Of several workers that fail, the first error is raised; Ray would log those of the others, much later.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # A thread that outlives Ray's shutdown may still call Ray, which would then start a new cluster for it.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    with ExitStack() as stack:
        if not _is_connected():
            with _own_signals():
                stack.enter_context(_connection(address or os.environ.get("RAY_ADDRESS")))
        stack.enter_context(raise_ray_failures())
        check_room(config)
        yield


def _is_connected() -> bool:
    """Whether this process is connected to Ray. Does not import it."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@contextmanager
def _connection(address: str | None) -> Iterator[None]:
    """Be connected for the block: to the cluster at `address`, or without one to a Ray of our own."""
    options = worker_options(str(Path.cwd()), sys.path) | _log_options()
    if address:
        import ray

        _join(address, options)
        try:
            yield
        finally:
            ray.shutdown()
    else:
        with local_ray(options):
            yield


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the process' own handling of signals while Ray starts, because Ray replaces the handler of SIGTERM.

    A signal that arrives meanwhile raises what our handler raises, in the block or right after it: Python drops what a
    handler raises inside some of its callbacks.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler, report = signal.getsignal(signal.SIGTERM), sys.unraisablehook

    def report_others(lost: Any) -> None:
        if not isinstance(lost.exc_value, KeyboardInterrupt | SystemExit):
            report(lost)

    reading, writing = socket.socketpair()
    with reading, writing:
        reading.setblocking(False)
        writing.setblocking(False)
        before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        sys.unraisablehook = report_others
        try:
            yield
        except SystemExit as stopped:  # by Ray's handler
            raise KeyboardInterrupt from stopped
        finally:
            sys.unraisablehook = report
            signal.set_wakeup_fd(before)
            signal.signal(signal.SIGTERM, handler)
        with suppress(BlockingIOError):
            if STOPPING.intersection(reading.recv(256)):
                raise KeyboardInterrupt


def _log_options() -> dict[str, object]:
    """Options of `ray.init`: --verbose also shows Ray's own lines and the output of its workers."""
    shown = logger.isEnabledFor(logging.DEBUG)
    if not shown:  # it advises to switch off the authentication that we switch on
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    return {"logging_level": "info" if shown else "warning", "log_to_driver": shown}


def _join(address: str, options: Mapping[str, object]) -> None:
    """Connect to the cluster at `address`. Raises UserError with Ray's message if that fails."""
    import ray

    warn_of_readable_token()
    try:
        _check_listening(address)
        ray.init(address=address, **options)
    except Exception as error:
        ray.shutdown()
        raise UserError(
            f"Cannot join the Ray cluster at {address} ({words_of(error)}). Start one (`ray start --head`), "
            "correct --address, or set workers=0 to run without Ray."
        ) from error


def _check_listening(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT, or it does not answer. Ray itself would retry for minutes."""
    place = address.rpartition("://")[2]
    host, colon, port = place.rpartition(":")
    if not colon or not port.isdigit():
        return
    socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0", "false"):
        return  # such a cluster does not answer the plain connection that is tried below
    import grpc  # which Ray brings

    with grpc.insecure_channel(place) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError as error:
            raise TimeoutError(
                f"{place} accepts connections and does not answer as Ray does within {ANSWER_S:.0f} s"
            ) from error


def gpus_per_worker(config: Config) -> float:
    """GPUs that each worker reserves: 0 unless `device` is cuda."""
    return config.ray.gpus_per_worker if config.device == "cuda" else 0.0


def worker_resources(config: Config) -> dict[str, float]:
    """The resources that Ray reserves for each training worker."""
    gpus = gpus_per_worker(config)
    return {"CPU": config.ray.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


def check_room(config: Config) -> None:
    """Raise ConfigError if the cluster still cannot place the requested workers after `ray.wait_s` seconds."""
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


def trainings_that_fit(config: Config) -> int:
    """The number of trainings of `workers` workers that fit on the cluster at once; at least 1."""
    return max(1, workers_that_fit(config) // max(config.workers, 1))


def workers_that_fit(config: Config) -> int:
    """The number of single workers that fit on the cluster at once; at least 1."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return max(1, _fitting(worker_resources(config), nodes))


def _fitting(worker: Mapping[str, float], nodes: list[dict[str, Any]]) -> int:
    """The number of workers that fit on the nodes. Each worker must fit on one node."""
    # The tolerance covers rounding: floor(0.3 / 0.1) is 2.
    return sum(
        min(math.floor(node.get(kind, 0) / amount + 1e-6) for kind, amount in worker.items())
        for node in nodes
    )


def _lacking(config: Config, nodes: list[dict[str, Any]]) -> str | None:
    """The error message if fewer workers fit than are needed; None if enough fit."""
    worker, needed = worker_resources(config), config.ray.min_workers or config.workers
    fitting = _fitting(worker, nodes)
    if fitting >= needed:
        return None
    has = {kind: sum(node.get(kind, 0) for node in nodes) for kind in worker}
    asked = " and ".join(f"{needed * amount:g} {kind}s" for kind, amount in worker.items())
    there = " and ".join(f"{amount:g} {kind}s" for kind, amount in has.items())
    split = ""
    if all(has[kind] >= needed * amount for kind, amount in worker.items()):
        split = (
            f", but only {fitting} workers fit on its {len(nodes)} nodes, as each worker must fit on one node"
        )
    remedy = f"Set workers={fitting} or less" if fitting else "Set workers=0 to run without Ray"
    less = [f"lower ray.{kind.lower()}s_per_worker" for kind in worker]
    others = ", ".join([*less, *(["set device=cpu"] if "GPU" in worker else [])])
    return (
        f"workers={config.workers} needs {asked}, the cluster has {there}{split}. {remedy}, {others}, "
        "or set ray.wait_s to the seconds that an autoscaling cluster needs to grow."
    )

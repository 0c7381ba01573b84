"""An address or none in, a connection to Ray out; what was started here is stopped here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from metarepair.config import Config
from tasks.errors import ConfigError, UserError


@contextmanager
def connected(workers: int, address: str | None, *, gpus: int = 0) -> Iterator[None]:
    """Ray for the time of the block; nothing at all when `workers` is 0.

    A cluster is joined at `address` or RAY_ADDRESS; otherwise one is started on this machine and stopped again.
    Raises UserError when no cluster answers, ConfigError when this machine has too few CPUs or GPUs.
    """
    if workers == 0:
        yield
        return
    # The controller polls this often; a report waits for the poll.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Training workers stay in the driver's folder: paths of the settings and the user's modules are relative to it.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    import ray

    if ray.is_initialized():
        _check_room(workers, gpus)
        yield
        return
    try:
        remote = address or os.environ.get("RAY_ADDRESS")
        options = {"address": remote} if remote else {"num_cpus": os.cpu_count(), "include_dashboard": False}
        ray.init(**options, logging_level="warning", log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"No Ray cluster at {address or os.environ.get('RAY_ADDRESS')} ({' '.join(str(error).split())}). "
            "Start one (`ray start --head`), correct --address, or set workers=0 to do without."
        ) from error
    try:
        _check_room(workers, gpus)
        yield
    finally:
        ray.shutdown()


def gpus_per_worker(config: Config) -> int:
    """Whole GPUs that each actor asks for: one with device: cuda, none otherwise."""
    return 1 if config.device == "cuda" else 0


def _check_room(workers: int, gpus: int) -> None:
    import ray

    has = ray.cluster_resources()
    cpus = int(has.get("CPU", 0))
    if workers > cpus:
        raise ConfigError(
            f"workers={workers} needs {workers} CPUs, the cluster has {cpus}. Set workers={cpus} or less."
        )
    if gpus > has.get("GPU", 0):
        raise ConfigError(
            f"workers={workers} with device=cuda needs {gpus} GPUs, the cluster has {int(has.get('GPU', 0))}. "
            "Set workers lower, or device=cpu."
        )

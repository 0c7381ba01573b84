"""A number of CPUs in, a Ray of this benchmark's own for the time of a block out; its folder is gone afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed.on_ray.pool import map_items


@contextmanager
def folder_for_ray() -> Iterator[Path]:
    """A short one, as sockets have short names; no other cluster of this machine is found from it."""
    folder = tempfile.mkdtemp(prefix="mr", dir="/tmp")
    before = {name: os.environ.pop(name, None) for name in ("RAY_ADDRESS", "RAY_TMPDIR")}
    os.environ["RAY_TMPDIR"] = folder
    try:
        yield Path(folder)
    finally:
        del os.environ["RAY_TMPDIR"]
        os.environ.update({name: value for name, value in before.items() if value is not None})
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def small_ray(cpus: int) -> Iterator[None]:
    """One node on this machine."""
    import ray

    with folder_for_ray() as folder:
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=str(folder),
        )
        try:
            yield
        finally:
            ray.shutdown()


def doubled() -> Callable[[int], int]:
    """A worker whose items cost nothing."""
    return lambda item: 2 * item


def items_per_s(count: int, *, workers: int) -> float:
    """Trivial items a second through the project's actor pool, once its actors are there."""
    seen: list[float] = []
    for _ in map_items(doubled, list(range(count)), workers=workers):
        seen.append(time.perf_counter())
    return (count - 1) / (seen[-1] - seen[0])

"""Start a Ray cluster for a benchmark's `with` block; its folder is deleted afterwards."""

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
    """Make a temporary folder for Ray and hide the machine's other clusters. Its path is short, for socket names."""
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
    """Run one node on this machine."""
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
    """Return a worker function whose items cost nothing."""
    return lambda item: 2 * item


def items_per_s(count: int, *, workers: int) -> float:
    """Return trivial items per second through MetaRepair's actor pool, once its actors have started."""
    seen: list[float] = []
    for _ in map_items(doubled, list(range(count)), workers=workers):
        seen.append(time.perf_counter())
    return (count - 1) / (seen[-1] - seen[0])

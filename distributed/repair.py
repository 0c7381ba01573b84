"""A target in, its repair done by a Ray task out: where the GPUs are, with what it says coming back as it goes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from distributed.cluster import worker_resources
from metarepair.config import Config
from metarepair.deploy import load_surroundings
from metarepair.layout import Run
from metarepair.repair_stage import repair_target
from metarepair.settings import parse_config
from tasks.errors import UserError
from tasks.storage import place

Say = Any
RETRIES = 3  # of a task whose process died; a repair begins again then


def repair_on_ray(run: Run, config: Config, target: str, say: Say) -> None:
    """Repairs and judges `target` on a worker. Raises what the repair raised; a UserError as itself."""
    import ray

    resources = worker_resources(config)
    options = {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0), "max_retries": RETRIES}
    task = ray.remote(num_returns="streaming", **options)(_repair)
    try:
        for line in task.remote(str(run.root), config.model_dump(mode="json"), target):
            say(ray.get(line))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def _repair(root: str, settings: dict[str, Any], target: str) -> Iterator[str]:
    """The lines that a repair says, while it goes on in a thread."""
    config, lines = parse_config(settings), queue.SimpleQueue[str | None]()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            repair_target(Run(place(root)), config, target, load_surroundings(config), lines.put)
        except BaseException as error:
            failed.append(error)
        finally:
            lines.put(None)

    worker = threading.Thread(target=work)
    worker.start()
    while (line := lines.get()) is not None:
        yield line
    worker.join()
    if failed:
        raise failed[0]

"""Run work in Ray's processes: one call whose log lines reach the driver, or many items on actors."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from logging.handlers import QueueHandler
from typing import Any, TypeVar

from distributed.on_ray.cluster import worker_resources, workers_that_fit
from distributed.on_ray.corruption_plugins import Versions, build_checked, check_worker, plugins_of
from distributed.on_ray.pool import map_items
from distributed.on_ray.ray_words import raise_cause
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.runs.logs import handled

Item = TypeVar("Item")
Result = TypeVar("Result")
logger = logging.getLogger(__name__)
RETRIES = 3  # of a task whose process dies


def call_on_worker(work: Callable[..., object], config: Config, *arguments: Any) -> None:
    """Call `work(config, *arguments)` on a worker, and log its log records here as they arrive.

    A UserError or OSError of the work is raised as itself, any other error as Ray's RayTaskError.
    """
    import ray

    resources = worker_resources(config)
    options = {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0), "max_retries": RETRIES}
    task = ray.remote(num_returns="streaming", **options)(_records_of)
    level = logger.getEffectiveLevel()
    try:
        for reference in task.remote(
            work, config.model_dump(mode="json"), plugins_of(config), arguments, level
        ):
            record: logging.LogRecord = ray.get(reference)
            logging.getLogger(record.name).handle(record)
    except ray.exceptions.RayTaskError as error:
        raise_cause(error)


def _records_of(
    work: Callable[..., object],
    settings: dict[str, Any],
    plugins: Versions,
    arguments: Sequence[Any],
    level: int,
) -> Iterator[logging.LogRecord]:
    """Run `work` in a thread, and yield its log records of `level` and above."""
    check_worker(plugins)  # first: without the plugins, the settings name unknown corruptions
    config, records = parse_config(settings), queue.SimpleQueue[logging.LogRecord | None]()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work(config, *arguments)
        except BaseException as error:
            failed.append(error)
        finally:
            records.put(None)

    with handled(QueueHandler(records), level):
        worker = threading.Thread(target=run)
        worker.start()
        while (record := records.get()) is not None:
            yield record
        worker.join()
    if failed:
        raise failed[0]


def map_on_workers(config: Config, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield the results in the order of the items. Actors do the work, as many as the cluster has room for."""
    import ray

    numbered = list(enumerate(items))
    done: dict[int, Result] = {}
    shared = ray.put(work)  # stored once for all actors: it may hold the clean images
    results = map_items(
        partial(build_checked, plugins_of(config), partial(_build_numbered, shared)),
        numbered,
        workers=workers_that_fit(config),
        resources=worker_resources(config),
    )
    for (number, _), result in results:
        done[number] = result
    yield from (done[number] for number in range(len(items)))


def _build_numbered(shared: Any) -> Callable[[tuple[int, Any]], Any]:
    import ray

    work = ray.get(shared)
    return lambda item: work(item[1])

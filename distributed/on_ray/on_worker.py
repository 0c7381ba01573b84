"""A function and its arguments in, done by a Ray task out, with what it says coming back as it goes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from distributed.on_ray.cluster import single_places, worker_resources
from distributed.on_ray.pool import map_items
from distributed.on_ray.ray_words import raise_cause
from metarepair.config.load import parse_config
from metarepair.config.run import Config

Item = TypeVar("Item")
Result = TypeVar("Result")
Say = Callable[[str], None]
RETRIES = 3  # of a task whose process died


def call_on_worker(work: Callable[..., object], config: Config, *arguments: Any, say: Say) -> None:
    """Calls `work(config, *arguments, say)` on a worker. Raises what it raised; a UserError as itself."""
    import ray

    resources = worker_resources(config)
    options = {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0), "max_retries": RETRIES}
    task = ray.remote(num_returns="streaming", **options)(_lines_of)
    try:
        for line in task.remote(work, config.model_dump(mode="json"), arguments):
            say(ray.get(line))
    except ray.exceptions.RayTaskError as error:
        raise_cause(error)


def _lines_of(
    work: Callable[..., object], settings: dict[str, Any], arguments: Sequence[Any]
) -> Iterator[str]:
    """The lines that `work` says, while it goes on in a thread."""
    config, lines = parse_config(settings), queue.SimpleQueue[str | None]()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work(config, *arguments, lines.put)
        except BaseException as error:
            failed.append(error)
        finally:
            lines.put(None)

    worker = threading.Thread(target=run)
    worker.start()
    while (line := lines.get()) is not None:
        yield line
    worker.join()
    if failed:
        raise failed[0]


def map_on_workers(config: Config, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The results in the order of the items, each piece done by an actor; as many at once as there is room for."""
    import ray

    numbered = list(enumerate(items))
    done: dict[int, Result] = {}
    shared = ray.put(work)  # once for all: it may hold the clean images
    found = map_items(
        partial(_build_numbered, shared),
        numbered,
        workers=single_places(config),
        resources=worker_resources(config),
    )
    for (number, _), result in found:
        done[number] = result
    yield from (done[number] for number in range(len(items)))


def _build_numbered(shared: Any) -> Callable[[tuple[int, Any]], Any]:
    import ray

    work = ray.get(shared)
    return lambda item: work(item[1])

"""Work items and a worker in, small results out as they are done: Ray actors, or this process.

An actor constructs the worker once and calls it for each item. Items are handed out one after the other to
whoever is free; an actor that dies is restarted and its item done again, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from tasks.errors import UserError, WorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")
IN_FLIGHT = 2  # items per actor: the next is there when one is done, and no queue grows
CPUS = 1.0  # of an actor
ATTEMPTS = 4  # at an item; actors are restarted as often as it takes


def map_items(
    build: Callable[[], Callable[[Item], Result]],
    items: Sequence[Item],
    *,
    workers: int,
    gpus_per_worker: float = 0,
) -> Iterator[tuple[Item, Result]]:
    """Yields (item, result) in the order of completion. `build` makes the worker where it runs.

    Raises what the worker raised; a UserError comes out as itself. WorkerError where an item kills its actor each time.
    """
    if not items:
        return
    if workers == 0:
        work = build()
        for item in items:
            yield item, work(item)
        return
    yield from _map_on_actors(build, items, min(workers, len(items)), gpus_per_worker)


def _map_on_actors(
    build: Callable[[], Callable[[Item], Result]], items: Sequence[Item], workers: int, gpus: float
) -> Iterator[tuple[Item, Result]]:
    import ray

    options = {"max_restarts": -1, "max_task_retries": ATTEMPTS - 1}
    actor_class = ray.remote(num_cpus=CPUS, num_gpus=gpus, **options)(_Actor)
    actors = [actor_class.remote(build) for _ in range(workers)]
    waiting = list(reversed(items))
    running: dict[Any, tuple[Any, Item]] = {}
    try:
        for actor in actors * IN_FLIGHT:
            if waiting:
                item = waiting.pop()
                running[actor.do.remote(item)] = (actor, item)
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, item = running.pop(done)
            if waiting:
                following = waiting.pop()
                running[actor.do.remote(following)] = (actor, following)
            yield item, _result(done, item)
    finally:
        for actor in actors:
            ray.kill(actor)


def _result(reference: Any, item: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        said = str(error).strip().splitlines()[0]
        raise WorkerError(
            f"A worker died {ATTEMPTS} times at or next to {item}: {said} Mostly there was too little memory: set "
            "workers or batch sizes lower, or look into Ray's logs. What is done is kept: run again to go on."
        ) from error


class _Actor:
    """Constructs the worker, calls it. One thread: the pool has an actor for each CPU."""

    def __init__(self, build: Callable[[], Callable[[Any], Any]]) -> None:
        torch.set_num_threads(1)
        self.build = build
        self.work: Callable[[Any], Any] | None = None

    def do(self, item: Any) -> Any:
        if self.work is None:  # not in the constructor: there, an error would come out as the actor's death
            self.work = self.build()
        return self.work(item)

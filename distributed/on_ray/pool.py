"""Map work items over Ray actors, and yield small results as they finish.

Each actor builds the worker once and calls it for each item. An actor that finishes an item is given the next one.

When an actor dies, Ray restarts it, on another node if its own was lost. The restarted actor builds the worker again
and repeats only the items that it had in progress; finished items are kept. An item is tried at most ATTEMPTS times:
if the actor is lost each time, the map ends with WorkerError. An error that the worker raises is not retried: the map
raises it at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from distributed.on_ray.metrics import count_restart_of_actor
from distributed.on_ray.ray_words import GO_ON, raise_cause, words_of
from tasks.errors import WorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")
IN_FLIGHT = 2  # items per actor: it need not wait for its next item, and its queue stays short
ONE_CPU: Mapping[str, float] = {"CPU": 1.0}
ATTEMPTS = 4  # per item; the number of actor restarts is not limited


def map_items(
    build: Callable[[], Callable[[Item], Result]],
    items: Sequence[Item],
    *,
    workers: int,
    resources: Mapping[str, float] = ONE_CPU,
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, result) in the order of completion. `build` creates the worker inside each actor.

    resources: the CPUs and GPUs that each of the `workers` actors reserves. Actors that do not fit yet get items once
    they start.
    Raises a UserError or OSError of the worker as itself and any other as Ray's RayTaskError; WorkerError if an actor
    cannot be started, or is lost in every attempt at an item.
    """
    if not items:
        return
    yield from _map_on_actors(build, items, min(workers, len(items)), resources)


def _map_on_actors(
    build: Callable[[], Callable[[Item], Result]],
    items: Sequence[Item],
    workers: int,
    resources: Mapping[str, float],
) -> Iterator[tuple[Item, Result]]:
    import ray

    reserved = {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0)}
    actor_class = ray.remote(**reserved, max_restarts=-1, max_task_retries=ATTEMPTS - 1)(_Actor)
    actors = [actor_class.remote(build) for _ in range(workers)]
    waiting = list(reversed(items))
    coming = {actor.ready.remote(): actor for actor in actors}
    running: dict[Any, tuple[Any, Item]] = {}
    try:
        while waiting or running:
            (done,), _ = ray.wait([*running, *coming], num_returns=1)
            if done in coming:
                _started(done)
            actor, room = (coming.pop(done), IN_FLIGHT) if done in coming else (running[done][0], 1)
            for _ in range(min(room, len(waiting))):
                following = waiting.pop()
                running[actor.do.remote(following)] = (actor, following)
            if done in running:
                item = running.pop(done)[1]
                yield item, _result(done, item)
            if not any(busy is actor for busy, _ in running.values()):
                ray.kill(actor)  # no work left: release its CPUs and GPUs for a restarted actor
    finally:
        for actor in actors:
            ray.kill(actor)


def _started(reference: Any) -> None:
    """Raise WorkerError if the actor could not be started."""
    import ray

    try:
        ray.get(reference)
    except ray.exceptions.RayActorError as error:
        raise WorkerError(f"A worker could not be started. {_said_and_remedy(error)}") from error


def _result(reference: Any, item: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise_cause(error)
    except ray.exceptions.RayActorError as error:
        raise WorkerError(
            f"Workers died in all {ATTEMPTS} attempts at {item} (or at the item queued with it). "
            f"{_said_and_remedy(error)}"
        ) from error


def _said_and_remedy(error: Exception) -> str:
    return (
        f"Ray says: {words_of(error)} See Ray's logs for details. If the kernel or Ray killed the worker for lack of "
        f"memory, lower workers or the batch sizes. {GO_ON}"
    )


class _Actor:
    """Builds the worker and calls it, with one thread: the pool has an actor for each CPU."""

    def __init__(self, build: Callable[[], Callable[[Any], Any]]) -> None:
        torch.set_num_threads(1)
        self.build = build
        self.work: Callable[[Any], Any] | None = None
        import ray

        if ray.get_runtime_context().was_current_actor_reconstructed:
            count_restart_of_actor()

    def ready(self) -> None:
        """Return once the actor has started."""

    def do(self, item: Any) -> Any:
        if self.work is None:  # not in the constructor: Ray would report an error there as a dead actor
            self.work = self.build()
        return self.work(item)

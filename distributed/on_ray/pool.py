"""Map work items over Ray actors; small results come back as they are done.

An actor constructs the worker once and calls it for each item. Items are handed out one after the other to
whoever is free; an actor that dies is restarted and its item done again, nothing else.
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
IN_FLIGHT = 2  # items per actor: the next is there when one is done, and no queue grows
ONE_CPU: Mapping[str, float] = {"CPU": 1.0}
ATTEMPTS = 4  # at an item; actors are restarted as often as it takes


def map_items(
    build: Callable[[], Callable[[Item], Result]],
    items: Sequence[Item],
    *,
    workers: int,
    resources: Mapping[str, float] = ONE_CPU,
) -> Iterator[tuple[Item, Result]]:
    """Yields (item, result) in the order of completion. `build` makes the worker where it runs.

    resources: the CPUs and GPUs that each of the `workers` actors reserves. Those that the cluster has no room for at
    the moment get no items, and join in when there is.
    Raises what the worker raised; a UserError comes out as itself. WorkerError where an actor cannot be started, or is
    lost each time that an item is tried.
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
                ray.kill(actor)  # it has nothing more to do: its place is for one whose node was lost
    finally:
        for actor in actors:
            ray.kill(actor)


def _started(reference: Any) -> None:
    """Raises WorkerError where an actor did not come into its place."""
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
            f"A worker was lost at or next to {item}, in each of {ATTEMPTS} attempts. {_said_and_remedy(error)}"
        ) from error


def _said_and_remedy(error: Exception) -> str:
    return (
        f"Ray says: {words_of(error)} Its logs say more (of a Ray of this machine: ray/session_latest/logs in "
        "RAY_TMPDIR or the system's temporary folder). If the kernel or Ray ended the worker for lack of memory, set "
        f"workers or batch sizes lower. {GO_ON}"
    )


class _Actor:
    """Constructs the worker, calls it. One thread: the pool has an actor for each CPU."""

    def __init__(self, build: Callable[[], Callable[[Any], Any]]) -> None:
        torch.set_num_threads(1)
        self.build = build
        self.work: Callable[[Any], Any] | None = None
        import ray

        if ray.get_runtime_context().was_current_actor_reconstructed:
            count_restart_of_actor()

    def ready(self) -> None:
        """Answers when the actor has its place."""

    def do(self, item: Any) -> Any:
        if self.work is None:  # not in the constructor: there, an error would come out as the actor's death
            self.work = self.build()
        return self.work(item)

"""Run a function on several gloo processes over loopback, one thread each, and time it.

The functions timed are an all-reduce of given sizes, episodes of the real MetaTrainer, and an episode that reduces its
earlier tasks while the last one is differentiated.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.scaling_nets import NetTask, build_net, random_task
from distributed.on_ray.context import RayContext
from metarepair.config.load import parse_config
from metarepair.engine.meta_gradient import task_gradient
from metarepair.engine.types import TaskBatch
from metarepair.engine.vectors import flatten
from metarepair.meta_training.meta_train import MetaTrainer
from metarepair.meta_training.task_source import TaskSource

Result = TypeVar("Result")


def on_ranks(work: Callable[..., Result], *arguments: Any, world: int) -> Result:
    """Call `work(*arguments)` in `world` processes joined by gloo; return rank 0's result."""
    with tempfile.TemporaryDirectory() as folder:
        # A process stays in the rendezvous until all have arrived, so each takes exactly one rank.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(world, mp_context=context) as pool:
            meeting = Path(folder) / "meeting"
            ranks = [pool.submit(_rank, meeting, rank, world, work, arguments) for rank in range(world)]
            results = [rank.result() for rank in ranks]  # re-raises an error of any rank
            return results[0]


def _rank(
    meeting: Path, rank: int, world: int, work: Callable[..., Result], arguments: Sequence[Any]
) -> Result:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=world)
    try:
        return work(*arguments)
    finally:
        dist.destroy_process_group()


def timed_together(work: Callable[[], object]) -> float:
    """Return the seconds from when all ranks have arrived to when all are done."""
    dist.barrier()
    started = time.perf_counter()
    work()
    dist.barrier()
    return time.perf_counter() - started


def all_reduce_rounds(sizes_bytes: Sequence[int], rounds: int) -> dict[int, list[float]]:
    """Time all-reduces by size, in rounds over all sizes. The first round, which connects, is left out."""
    context = GlooContext(folder=Path())
    vectors = {size: torch.ones(size // 4) for size in sizes_bytes}
    found: dict[int, list[float]] = {size: [] for size in sizes_bytes}
    for number in range(rounds + 1):
        for size, vector in vectors.items():
            dist.barrier()
            started = time.perf_counter()
            context.sum_over_workers(vector)
            seconds = time.perf_counter() - started
            vector.fill_(1.0)
            if number:
                found[size].append(seconds)
    return found


class GlooContext(RayContext):
    """The context of one of these ranks; it sums as a rank of Ray Train does."""

    rank = property(lambda _: dist.get_rank())
    world_size = property(lambda _: dist.get_world_size())
    device = property(lambda _: torch.device("cpu"))


def episode_rounds(spec: NetTask, tasks: int, rounds: int, warm: bool) -> list[float]:
    """Time `rounds` episodes of the real trainer. warm: run one episode first, which is left out."""
    module, batches = build_net(spec), [random_task(spec, seed) for seed in range(tasks)]
    source = SimpleNamespace(
        deployed=SimpleNamespace(module=module),
        task=lambda episode, slot: batches[slot],  # noqa: ARG005
    )
    config = parse_config(
        {
            "name": "scaling",
            "mining": {"experiences": ["fog"]},
            # Tiny steps: random weights would diverge, and a skipped episode takes less time.
            "inner": {"steps": spec.steps, "rate": 1e-6},
            "train": {
                "tasks": tasks,
                "episodes": rounds + warm,
                "round_episodes": 1,
                "outer_rate": 1e-6,
                "memory": spec.memory,
            },
        }
    )
    trainer = MetaTrainer(cast(TaskSource, source), config, GlooContext(folder=Path()))
    found = [timed_together(trainer.run_episode) for _ in range(rounds + warm)]
    trainer.close()
    return found[int(warm) :]


def overlap_rounds(spec: NetTask, tasks: int, rounds: int) -> dict[str, list[float]]:
    """Time an episode of `tasks` tasks per rank: reduced once at the end, or the earlier tasks in advance."""
    net, context = spec.functional(build_net(spec)), GlooContext(folder=Path())
    batches = [random_task(spec, seed) for seed in range(tasks)]

    def gradient(batch: TaskBatch) -> Tensor:
        found = task_gradient(net, net.parameters(), net.buffers(), batch, memory=spec.memory)
        return flatten(found.gradient)

    def at_the_end() -> None:
        context.sum_over_workers(sum((gradient(batch) for batch in batches[1:]), gradient(batches[0])))

    def in_advance() -> None:
        earlier = sum((gradient(batch) for batch in batches[1:-1]), gradient(batches[0]))
        waiting = dist.all_reduce(earlier, async_op=True)
        last = gradient(batches[-1])
        waiting.wait()
        context.sum_over_workers(last).add_(earlier)

    found: dict[str, list[float]] = {"at the end": [], "in advance": []}
    for number in range(rounds + 1):
        for name, way in (("at the end", at_the_end), ("in advance", in_advance)):
            seconds = timed_together(way)
            if number:
                found[name].append(seconds)
    return found


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median over the rounds of above/below."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))

"""Decide how many inner steps keep their graphs, so that they fit into the free memory (`memory: auto`).

One trial step measures the size of a step's graph. Keeping all graphs is fastest; keeping none takes least memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from metarepair.engine.checks import check_choice, check_number
from metarepair.engine.inner import FunctionalNet, Point, gradients_of
from metarepair.engine.types import Batch
from metarepair.engine.vectors import State

Memory = Literal["auto", "graph", "recompute"]

USED = 0.8  # share of the free memory that a plan may take
# For control groups version 2, then version 1: the files of limit, usage and statistics, and the statistic that counts
# page cache that can be dropped.
CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How many of the last inner steps keep their graphs, and why.

    Attributes:
        kept: Number of last steps, from 0 to `rule.steps`. Give it to `task_gradient` as `memory`.
        reason: One line for a log.
    """

    kept: int
    reason: str


def kept_steps(memory: Memory | int, steps: int) -> int:
    """The number of last inner steps that keep their graphs in a memory mode other than `auto`."""
    if isinstance(memory, int):
        return min(memory, steps)
    return steps if memory == "graph" else 0


def plan_for(
    net: FunctionalNet,
    parameters: State,
    buffers: State,
    support: Batch,
    memory: Memory | int,
    order: str,
    *,
    processes: int = 1,
) -> MemoryPlan:
    """Decide once, for many tasks alike, how many steps keep their graphs.

    Source: docs/meta_gradient.md, "Memory".

    Args:
        net: The model and its inner rule.
        parameters: All parameters, by name.
        buffers: All buffers, by name.
        support: A support batch, of the size that tasks have.
        memory: "graph" keeps the graphs of all steps, "recompute" those of none, a number those of that many last
            steps, and "auto" as many as fit into the free memory.
        order: The derivative's order. "first" and "reptile" need no graphs.
        processes: Number of processes that share this machine's memory (CPU only).

    Returns:
        The number of steps, and the reason.

    Raises:
        ConfigError: `memory` is neither a mode nor a number of steps, or autograd cannot differentiate the model twice.
    """
    if not isinstance(memory, int):
        check_choice("memory", memory, get_args(Memory), more="or a number of steps, at least 0")
    else:
        check_number(
            "memory", memory, "auto, graph, recompute or a number of steps, at least 0", whole=True, least=0
        )
    if order != "second":
        return MemoryPlan(kept=0, reason=f"order: {order} keeps no graphs")
    if net.rule.steps == 0:
        return MemoryPlan(kept=0, reason="no inner steps keep no graphs")
    if memory == "auto":
        free = free_bytes(support.images_BCHW.device, processes=processes)
        return plan_memory(net, parameters, buffers, support, free_bytes=free)
    return MemoryPlan(kept=kept_steps(memory, net.rule.steps), reason=f"{memory}, as set")


def plan_memory(
    net: FunctionalNet, parameters: State, buffers: State, support: Batch, *, free_bytes: int | None
) -> MemoryPlan:
    """Find the largest number of graphs that fits into the free memory, by one trial step.

    Args:
        net: The model and its inner rule.
        parameters: All parameters, by name.
        buffers: All buffers, by name.
        support: A support batch, of the size that tasks have.
        free_bytes: Free memory in bytes, of which 80% may be used; None if it is unknown, and then no graph is kept.

    Returns:
        The number of last steps that keep their graphs, and the reason.

    Raises:
        ConfigError: Autograd cannot differentiate the model twice.
    """
    steps = net.rule.steps
    if free_bytes is None:
        return MemoryPlan(
            kept=0, reason="recompute: the amount of free memory is not known here; set train.memory"
        )
    graph = graph_bytes(net, parameters, buffers, support)
    theta = sum(v.numel() * v.element_size() for v in parameters.values())
    # Besides the kept graphs: the graph in use with its temporaries, θ of every step, gradients and products.
    working = 2 * graph + (steps + 6) * theta
    kept = max(0, min(steps, int((USED * free_bytes - working) // max(graph, 1))))
    name = "graph" if kept == steps else "recompute" if kept == 0 else f"the graphs of the last {kept}"
    reason = (
        f"{name}, of {steps} inner steps: a graph takes {graph / 2**20:,.0f} MiB, the rest about "
        f"{working / 2**20:,.0f} MiB, and {free_bytes / 2**20:,.0f} MiB are free"
    )
    return MemoryPlan(kept=kept, reason=reason)


def graph_bytes(net: FunctionalNet, parameters: State, buffers: State, support: Batch) -> int:
    """Memory in bytes that the differentiable gradient of one inner step holds, without the parameters."""
    leaves = Point(parameters=parameters).leaves(net.trainable)
    device = next(iter(leaves.values())).device
    own = {v.untyped_storage().data_ptr() for v in (*leaves.values(), *buffers.values())}
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    with _saved_bytes(own) as saved, net.support(leaves, buffers, support) as forward:
        gradients = gradients_of(net, forward.loss, [leaves[k] for k in net.adapted], create_graph=True)
    held = sum(saved.values())
    if device.type == "cuda":
        held = torch.cuda.memory_allocated(device) - before
    del gradients, forward
    return held


@contextmanager
def _saved_bytes(own: set[int]) -> Iterator[dict[int, int]]:
    """Record the size in bytes of every storage that autograd saves in the block, by address; skip those in `own`."""
    held: dict[int, int] = {}
    kept: list[
        torch.UntypedStorage
    ] = []  # a freed address could be used again, and two storages counted as one

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in own and storage.data_ptr() not in held:
            held[storage.data_ptr()] = storage.nbytes()
            kept.append(storage)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        yield held
    kept.clear()


def free_bytes(device: torch.device, *, processes: int = 1, root: Path = Path("/")) -> int | None:
    """Measure how much memory each process may still take.

    Args:
        device: On CUDA, the free memory of the device plus what this process's allocator holds unused. On a CPU, the
            smaller of what the kernel reports as available and what the control group's limit leaves.
        processes: Number of processes that share the machine's memory (CPU only).
        root: Root of the file system that is read for a CPU.

    Returns:
        Bytes for each process; None if they are unknown.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    known = [
        v for v in (_available(root), *(_left_of_group(root, *names) for names in CGROUPS)) if v is not None
    ]
    return min(known) // processes if known else None


def _available(root: Path) -> int | None:
    """MemAvailable in /proc/meminfo, in bytes."""
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left_of_group(root: Path, limit: str, usage: str, statistics: str, cache: str) -> int | None:
    """The bytes that a control group's limit leaves; page cache that it can drop counts as free."""
    folder = root / "sys/fs/cgroup"
    try:
        lines = (folder / statistics).read_text(encoding="ascii").splitlines()
        dropped = next(int(line.split()[1]) for line in lines if line.startswith(f"{cache} "))
        return max(
            0,
            int((folder / limit).read_text(encoding="ascii"))
            - int((folder / usage).read_text(encoding="ascii"))
            + dropped,
        )
    except (OSError, ValueError, StopIteration):  # no such group, or "max"
        return None

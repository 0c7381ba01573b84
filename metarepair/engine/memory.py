"""How many inner steps' graphs fit into the free memory: `memory: auto`.

A dry step measures what one step's graph holds. Keeping all graphs is the fastest way, keeping none the leanest.
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
# limit, usage, statistics, and the name there of page cache that can be dropped: version 2, version 1
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
    """How many of the last steps keep their graphs, and why."""

    kept: int
    reason: str


def kept_steps(memory: Memory | int, steps: int) -> int:
    """For how many of the last inner steps a memory mode (not `auto`) keeps the graphs."""
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
    """For which steps graphs are kept: as asked, or what fits where so many processes share this machine."""
    if not isinstance(memory, int):
        check_choice("memory", memory, get_args(Memory), more="or a number of steps from 0")
    else:
        check_number(
            "memory", memory, "auto, graph, recompute or a number of steps from 0", whole=True, least=0
        )
    if order != "second":
        return MemoryPlan(kept=0, reason=f"order: {order} keeps no graphs")
    if memory == "auto":
        free = free_bytes(support.images_BCHW.device, processes=processes)
        return plan_memory(net, parameters, buffers, support, free_bytes=free)
    return MemoryPlan(kept=kept_steps(memory, net.rule.steps), reason=f"{memory}, as set")


def plan_memory(
    net: FunctionalNet, parameters: State, buffers: State, support: Batch, *, free_bytes: int | None
) -> MemoryPlan:
    """The largest number of graphs that fits; none where the free memory is not known (`free_bytes` None)."""
    steps = net.rule.steps
    if free_bytes is None:
        return MemoryPlan(
            kept=0, reason="recompute: how much memory is free is not known here; set train.memory"
        )
    graph = graph_bytes(net, parameters, buffers, support)
    theta = sum(v.numel() * v.element_size() for v in parameters.values())
    # Besides the kept graphs: one at work with its own temporaries, θ of every step, gradients and products.
    working = 2 * graph + (steps + 6) * theta
    kept = max(0, min(steps, int((USED * free_bytes - working) // max(graph, 1))))
    name = "graph" if kept == steps else "recompute" if kept == 0 else f"the graphs of the last {kept}"
    reason = (
        f"{name}, of {steps} inner steps: a graph takes {graph / 2**20:,.0f} MiB, the rest about "
        f"{working / 2**20:,.0f} MiB, and {free_bytes / 2**20:,.0f} MiB are free"
    )
    return MemoryPlan(kept=kept, reason=reason)


def graph_bytes(net: FunctionalNet, parameters: State, buffers: State, support: Batch) -> int:
    """Bytes that one inner step's differentiable gradient holds, besides the parameters themselves."""
    leaves = Point(parameters=parameters).leaves(net.trainable)
    device = next(iter(leaves.values())).device
    own = {v.untyped_storage().data_ptr() for v in (*leaves.values(), *buffers.values())}
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    with _saved_bytes(own) as saved, net.support(leaves, buffers, support) as found:
        gradients = gradients_of(net, found.loss, [leaves[k] for k in net.adapted], create_graph=True)
    held = sum(saved.values())
    if device.type == "cuda":
        held = torch.cuda.memory_allocated(device) - before
    del gradients, found
    return held


@contextmanager
def _saved_bytes(own: set[int]) -> Iterator[dict[int, int]]:
    """The bytes of every storage that autograd saves meanwhile, by its address; not of those in `own`."""
    held: dict[int, int] = {}
    kept: list[torch.UntypedStorage] = []  # an address that is given back could be counted once for two

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
    """Memory that each of so many processes on this machine may still take; None where that is not known.

    CUDA: the device's, with what this process' allocator holds unused. CPU: the least of what the kernel calls
    available and what the control group leaves.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    found = [
        v for v in (_available(root), *(_left_of_group(root, *names) for names in CGROUPS)) if v is not None
    ]
    return min(found) // processes if found else None


def _available(root: Path) -> int | None:
    """MemAvailable of /proc/meminfo."""
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left_of_group(root: Path, limit: str, usage: str, statistics: str, cache: str) -> int | None:
    """What a control group's limit leaves; page cache that it can drop counts as free."""
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

"""Test `memory: auto`: its measurements, its choice, and how memory grows with the inner steps in each mode."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from metarepair.engine.inner import FunctionalNet
from metarepair.engine.memory import free_bytes, graph_bytes, plan_memory
from metarepair.engine.meta_gradient import Memory, task_gradient
from metarepair.engine.types import Batch, InnerRule, TaskBatch

MIB = 2**20


def net(steps: int = 4, width: int = 64) -> FunctionalNet:
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Linear(7200, width))
    return FunctionalNet(
        nn.Sequential(*body, nn.Tanh(), nn.Linear(width, 3)),
        InnerRule(steps=steps, rate=0.01, batch_norm="batch"),
    )


def task(size: int = 32) -> TaskBatch:
    one = Batch(images_BCHW=torch.randn(size, 3, 32, 32), labels_B=torch.arange(size) % 3)
    return TaskBatch(support=one, query=one)


def allocated_peak(work: Callable[[], object]) -> int:
    """Return the peak bytes that torch's CPU allocator held during `work`, from the profiler's allocation records."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        kept = work()
    del kept
    held = most = 0
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def peak(steps: int, memory: Memory | int) -> int:
    one, given = net(steps), task()
    return allocated_peak(lambda: task_gradient(one, one.parameters(), one.buffers(), given, memory=memory))


def test_recompute_adds_only_the_parameters_for_each_step() -> None:
    theta = sum(v.numel() * v.element_size() for v in net().parameters().values())
    peaks = [peak(steps, "recompute") for steps in range(1, 12)]
    for fewer, more in pairwise(peaks[1:]):
        assert more - fewer == pytest.approx(theta, rel=0.02)


def test_a_kept_graph_costs_what_the_dry_step_says() -> None:
    one = net(8)
    graph = graph_bytes(one, one.parameters(), one.buffers(), task().support)
    theta = sum(v.numel() * v.element_size() for v in one.parameters().values())
    for kept in (2, 4, 6):
        assert (peak(8, kept + 1) - peak(8, kept)) == pytest.approx(graph, abs=2 * theta)
    assert graph > 3 * theta  # otherwise the test shows nothing


def test_the_plan_keeps_as_many_graphs_as_fit() -> None:
    one, given = net(4), task()
    graph = graph_bytes(one, one.parameters(), one.buffers(), given.support)

    def kept(free: int | None) -> int:
        return plan_memory(one, one.parameters(), one.buffers(), given.support, free_bytes=free).kept

    assert kept(1000 * graph) == 4
    assert kept(0) == kept(graph) == kept(None) == 0
    found = [kept(n * graph) for n in range(2, 30)]
    assert found == sorted(found)
    assert set(found) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("graphs", [5, 6, 7, 8, 9, 12])
def test_what_a_plan_needs_stays_below_what_is_free(graphs: int) -> None:
    one, given = net(4), task()
    free = graphs * graph_bytes(one, one.parameters(), one.buffers(), given.support)
    plan = plan_memory(one, one.parameters(), one.buffers(), given.support, free_bytes=free)
    assert peak(4, plan.kept) < free


def test_the_plan_states_its_choice_and_the_reason() -> None:
    one, given = net(4), task()
    reason = plan_memory(one, one.parameters(), one.buffers(), given.support, free_bytes=10**12).reason
    assert reason.startswith("graph, of 4 inner steps: a graph takes ")
    assert "are free" in reason
    reason = plan_memory(one, one.parameters(), one.buffers(), given.support, free_bytes=None).reason
    assert "not known" in reason


def test_the_dry_step_leaves_the_net_alone() -> None:
    one = net()
    before = {k: v.clone() for k, v in one.module.state_dict().items()}
    graph_bytes(one, one.parameters(), one.buffers(), task().support)
    assert all(torch.equal(v, before[k]) for k, v in one.module.state_dict().items())


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 4096000 kB\nMemAvailable:   2048000 kB\n"}
V2 = {
    "sys/fs/cgroup/memory.max": f"{900 * MIB}\n",
    "sys/fs/cgroup/memory.current": f"{500 * MIB}\n",
    "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {100 * MIB}\n",
}
V1 = {
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{700 * MIB}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{600 * MIB}\n",
    "sys/fs/cgroup/memory/memory.stat": f"inactive_file 0\ntotal_inactive_file {50 * MIB}\n",
}


@pytest.mark.parametrize(
    ("files", "mib"),
    [
        (MEMINFO, 2000),
        (MEMINFO | V2, 500),
        (MEMINFO | V1, 150),
        (MEMINFO | V2 | {"sys/fs/cgroup/memory.max": "max\n"}, 2000),
        ({}, None),
    ],
)
def test_free_memory_is_the_smaller_of_machine_and_cgroup(
    tmp_path: Path, files: dict[str, str], mib: int | None
) -> None:
    found = free_bytes(torch.device("cpu"), root=write(tmp_path, files))
    assert found == (None if mib is None else mib * MIB)


def test_processes_share_the_free_memory(tmp_path: Path) -> None:
    root = write(tmp_path, MEMINFO)
    assert free_bytes(torch.device("cpu"), processes=4, root=root) == 500 * MIB

"""Compare the scaling model with simulated timelines, closed forms, and properties of any cluster."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from benchmarks.scaling_model import (
    Link,
    Processor,
    Training,
    all_reduce_s,
    efficiency,
    episode,
    fit_line,
    growth,
    link_of,
    overlapped,
    ring_s,
    streamed,
    takeover,
)
from benchmarks.scaling_plan import Row

SLOW = Link(name="slow", bytes_per_s=1e6, latency_s=1e-3)
FAST = Link(name="fast", bytes_per_s=1e12, latency_s=0.0)


def training(**changes: float) -> Training:
    values = {
        "tasks": 64,
        "task_s": 1.0,
        "batch_s": 0.1,
        "add_s": 0.01,
        "outer_s": 0.2,
        "gradient_bytes": 4e6,
    }
    return Training(**(values | changes))  # type: ignore[arg-type]  # int or float


def simulated_ring(size_bytes: float, workers: int, link: Link) -> float:
    """Seconds of a simulated ring: each rank sends a chunk and receives one until all ranks have every sum."""
    clocks = [0.0] * workers
    # The ranks whose values are in each chunk of each rank.
    holds = [{chunk: {rank} for chunk in range(workers)} for rank in range(workers)]
    step = 0
    while any(len(parts) < workers for held in holds for parts in held.values()):
        arrive = [t + size_bytes / workers / link.bytes_per_s + link.latency_s for t in clocks]
        sent = [((rank - step) % workers, holds[rank][(rank - step) % workers]) for rank in range(workers)]
        for rank in range(workers):
            chunk, parts = sent[rank - 1]
            holds[rank][chunk] = holds[rank][chunk] | parts
            clocks[rank] = max(clocks[rank], arrive[rank - 1])
        step += 1
    return max(clocks)


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
def test_the_time_of_a_ring_equals_that_of_a_simulated_one(workers: int) -> None:
    assert ring_s(1e6, workers, SLOW) == pytest.approx(simulated_ring(1e6, workers, SLOW))


def test_trees_are_used_only_where_they_are_faster() -> None:
    link = Link(name="x", bytes_per_s=1e9, latency_s=1e-3, trees=True)
    ring = Link(name="x", bytes_per_s=1e9, latency_s=1e-3)
    assert all_reduce_s(1e6, 512, link) < all_reduce_s(1e6, 512, ring) / 10  # latency dominates
    # Size dominates: a ring of two sends half.
    assert all_reduce_s(1e9, 2, link) == all_reduce_s(1e9, 2, ring)


def test_efficiency_is_one_on_one_worker_and_falls_with_every_doubling() -> None:
    found = [efficiency(training(), 2**i, SLOW) for i in range(8)]
    assert found[0] == 1
    assert all(later < earlier for earlier, later in itertools.pairwise(found))


def test_with_free_communication_only_an_uneven_share_of_tasks_costs_efficiency() -> None:
    free = training(outer_s=0, add_s=0, gradient_bytes=0)
    assert efficiency(free, 16, FAST) == pytest.approx(1)
    assert efficiency(free, 48, FAST) == pytest.approx(64 / (48 * 2))  # 16 of 48 workers have a second task


def test_workers_without_a_task_save_no_time() -> None:
    assert episode(training(tasks=4), 16, FAST).compute_s == episode(training(tasks=4), 4, FAST).compute_s


def test_making_a_batch_costs_time_only_if_it_is_slower_than_a_task() -> None:
    hidden, shown = (episode(training(batch_s=b), 1, FAST).compute_s for b in (0.9, 1.5))
    assert hidden == episode(training(batch_s=0), 1, FAST).compute_s
    assert shown - hidden == pytest.approx(64 * 0.5)


def test_takeover_is_the_first_count_of_workers_whose_all_reduce_outlasts_the_tasks() -> None:
    here = training(gradient_bytes=2e6)  # about 4 s on the slow link
    first = takeover(here, SLOW)
    assert first is not None
    before, after = (episode(here, w, SLOW) for w in (first - 1, first))
    assert before.all_reduce_s <= before.compute_s
    assert after.all_reduce_s > after.compute_s
    assert takeover(here, FAST) is None


def simulated_overlap(t: Training, workers: int, link: Link) -> float:
    """Seconds of a simulated episode: the sum of the earlier tasks is sent during the last task.

    The last gradient is sent when it is ready and the link is free.
    """
    tasks_each, reduce_s = t.tasks // workers, all_reduce_s(t.gradient_bytes, workers, link)
    earlier_done = (tasks_each - 1) * t.task_s + (tasks_each - 2) * t.add_s
    last_done, link_free = earlier_done + t.task_s, earlier_done + reduce_s
    return max(last_done, link_free) + reduce_s + t.add_s + t.outer_s


@pytest.mark.parametrize("task_s", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("workers", [2, 8, 32])
def test_reducing_in_advance_never_pays(task_s: float, workers: int) -> None:
    here = training(task_s=task_s, batch_s=0)
    ahead, plain = overlapped(here, workers, SLOW), episode(here, workers, SLOW).seconds
    assert ahead == pytest.approx(simulated_overlap(here, workers, SLOW))
    assert ahead >= plain
    assert (ahead > plain) == (all_reduce_s(4e6, workers, SLOW) > task_s)


def test_reducing_layer_by_layer_saves_at_most_the_time_of_the_last_product() -> None:
    here = training()
    plain = episode(here, 8, SLOW)
    assert streamed(here, 8, SLOW, 0.2) == pytest.approx(plain.seconds - 0.2)
    assert streamed(here, 8, FAST, 0.2) == pytest.approx(plain.compute_s + plain.outer_s)


def test_a_fitted_line_recovers_the_link_between_two_ranks() -> None:
    sizes = [1e6, 4e6, 64e6]
    link = Link(name="x", bytes_per_s=2e9, latency_s=3e-4)
    line = fit_line(sizes, [ring_s(size, 2, link) for size in sizes])
    found = link_of(line, "x")
    assert found.bytes_per_s == pytest.approx(link.bytes_per_s)
    assert found.latency_s == pytest.approx(link.latency_s)
    assert line.worst < 1e-9


def test_a_fitted_line_never_has_a_negative_start_time() -> None:
    line = fit_line([1.0, 2.0], [1.0, 3.0])
    assert line.start_s == 0
    steeper, flatter = (sum((s * x / y - 1) ** 2 for x, y in ((1, 1), (2, 3))) for s in (1.3, 1.1))
    best = sum((line.seconds(x) / y - 1) ** 2 for x, y in ((1, 1), (2, 3)))
    assert best <= min(steeper, flatter)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_growth_is_the_exponent_of_a_power_law(exponent: float) -> None:
    counts = [100, 300, 1000]
    assert growth(counts, list(3 * np.power(counts, exponent))) == pytest.approx(exponent)


def test_a_processor_is_limited_by_arithmetic_or_by_starting_operators() -> None:
    gpu = Processor(name="gpu", flops_per_s=1e12, operator_s=1e-5)
    assert gpu.seconds(3e12, 10) == 3
    assert gpu.seconds(1e6, 1000) == pytest.approx(0.01)


def test_wall_hours_stop_falling_once_all_usable_workers_are_busy() -> None:
    row = Row(stage="x", amount=1, unit="x", core_h=100, gpu_h=10, basis="x", at_most=20)
    assert row.wall_h(cores=10, gpus=0) == 10
    assert row.wall_h(cores=1000, gpus=0) == 5
    assert row.wall_h(cores=1000, gpus=5) == 2

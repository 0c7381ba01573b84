"""Model an episode's time on any number of workers from the seconds of its parts (pure functions, no measuring).

Meta-training is data-parallel over the S tasks of an episode (metarepair.meta_training.meta_train):

    episode = ceil(S/W) × max(task, batch) + (ceil(S/W) − 1) × add + all-reduce(P, W) + outer step

A batch is made while the task before it is differentiated, so it only matters if it takes longer. Not modelled:
workers of unequal speed (an episode ends with the slowest), checkpoints (written in the background), other traffic.
Source of the all-reduce: Patarasuk & Yuan 2009 (ring); Sanders et al. 2009 (two trees).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# S tasks of an episode, W workers, P parameters


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link between workers: bytes per second in each direction, and seconds until a message's first byte arrives.

    trees: whether two trees may be used if they are faster than the ring (NCCL does so, gloo uses only the ring).
    """

    name: str
    bytes_per_s: float
    latency_s: float
    trees: bool = False


@dataclass(frozen=True, kw_only=True)
class Training:
    """The seconds and bytes that one worker needs for the parts of an episode."""

    tasks: int
    task_s: float
    batch_s: float
    add_s: float
    outer_s: float
    gradient_bytes: int


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Seconds of an episode's parts on `workers` workers."""

    workers: int
    compute_s: float
    all_reduce_s: float
    outer_s: float

    @property
    def seconds(self) -> float:
        return self.compute_s + self.all_reduce_s + self.outer_s


def ring_s(size_bytes: float, workers: int, link: Link) -> float:
    """Seconds of an all-reduce by a ring: 2(W − 1) messages in sequence, each with 1/W of the bytes."""
    messages = 2 * (workers - 1)
    return messages * (size_bytes / workers / link.bytes_per_s + link.latency_s)


def trees_s(size_bytes: float, workers: int, link: Link) -> float:
    """Seconds of an all-reduce by two trees, up and down: slightly more bytes than a ring, but log₂ W latencies."""
    if workers == 1:
        return 0.0
    return 2 * (size_bytes / link.bytes_per_s + math.ceil(math.log2(workers)) * link.latency_s)


def all_reduce_s(size_bytes: float, workers: int, link: Link) -> float:
    """Seconds of an all-reduce over the link, by the faster algorithm that it allows."""
    ring = ring_s(size_bytes, workers, link)
    return min(ring, trees_s(size_bytes, workers, link)) if link.trees else ring


def episode(training: Training, workers: int, link: Link) -> Episode:
    """One episode on `workers` workers; workers beyond the number of tasks only wait."""
    tasks = math.ceil(training.tasks / workers)  # of the worker with the most
    return Episode(
        workers=workers,
        compute_s=tasks * max(training.task_s, training.batch_s) + (tasks - 1) * training.add_s,
        all_reduce_s=all_reduce_s(training.gradient_bytes, workers, link),
        outer_s=training.outer_s,
    )


def efficiency(training: Training, workers: int, link: Link) -> float:
    """Time on one worker over W times the time on W workers, for the same tasks: 1 is perfect."""
    alone = episode(training, 1, link).seconds
    return alone / (workers * episode(training, workers, link).seconds)


def takeover(training: Training, link: Link, most: int = 1024) -> int | None:
    """The least number of workers, up to `most`, whose all-reduce takes longer than their tasks; None if none."""
    for workers in range(2, min(most, training.tasks) + 1):
        found = episode(training, workers, link)
        if found.all_reduce_s > found.compute_s:
            return workers
    return None


def overlapped(training: Training, workers: int, link: Link) -> float:
    """Seconds of an episode that reduces the sum of its earlier tasks while the last one is differentiated.

    The last gradient must be reduced, too, and is as large, so all bytes are sent twice. At best the first all-reduce
    hides behind the last task and this takes as long as `episode`; otherwise it takes longer by the rest.
    """
    plain = episode(training, workers, link)
    if math.ceil(training.tasks / workers) == 1:
        return plain.seconds
    return plain.seconds + max(0.0, plain.all_reduce_s - training.task_s)


def streamed(training: Training, workers: int, link: Link, share: float) -> float:
    """A lower bound on the seconds of an episode that reduces the last gradient layer by layer as it becomes final.

    A layer's gradient is final only in the task's last Hessian product, which takes `share` of the task's time.
    """
    plain = episode(training, workers, link)
    return plain.seconds - min(plain.all_reduce_s, share * training.task_s)


@dataclass(frozen=True)
class Line:
    """The line seconds = start_s + amount / per_s, and the largest relative error of the points it was fitted to."""

    start_s: float
    per_s: float
    worst: float

    def seconds(self, amount: float) -> float:
        return self.start_s + amount / self.per_s


def fit_line(amounts: Sequence[float], seconds: Sequence[float]) -> Line:
    """Fit the line with the least squared relative errors and a start that is not negative."""
    x, y = np.asarray(amounts, float), np.asarray(seconds, float)
    slope, start = np.polyfit(x, y, 1, w=1 / y)
    if start < 0:  # the best of the lines through the origin
        start, slope = 0.0, float((x / y).sum() / ((x / y) ** 2).sum())
    worst = float(np.max(np.abs(start + slope * x - y) / y))
    return Line(start_s=float(start), per_s=float(1 / slope), worst=worst)


def link_of(line: Line, name: str) -> Link:
    """Return the link of two ranks' all-reduces: a ring of two sends each byte once, in two messages."""
    return Link(name=name, bytes_per_s=line.per_s, latency_s=line.start_s / 2)


def growth(amounts: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent e of cost ~ amount^e, by least squares on logarithms: 1 is linear, 2 is quadratic."""
    return float(np.polyfit(np.log(amounts), np.log(costs), 1)[0])


def doubling(until: int) -> list[int]:
    """1, 2, 4, … up to `until`."""
    return [2**i for i in range(until.bit_length()) if 2**i <= until]


@dataclass(frozen=True, kw_only=True)
class Processor:
    """A processor for tasks: its sustained operations per second, and the seconds to start an operator."""

    name: str
    flops_per_s: float
    operator_s: float = 0.0

    def seconds(self, flops: float, operators: float = 0.0) -> float:
        """Seconds of some work. Arithmetic and starting operators overlap, so the longer one counts."""
        return max(flops / self.flops_per_s, operators * self.operator_s)


def table(
    training: Training, links: Sequence[Link], value: Callable[[Training, int, Link], float], most: int = 1024
) -> list[tuple[int, list[float]]]:
    """(workers, a value for each link) for 1, 2, 4, … workers."""
    return [(w, [value(training, w, link) for link in links]) for w in doubling(most)]

"""Count a task's operations, bytes and seconds for a net, as input of the scaling model.

flops        operations of a whole task, counted by torch's FlopCounterMode on few images; linear in the images
operators    operators that compute (views do not) in a task; independent of the number of images
last_share   share of a task's operations in its last Hessian product
graph_bytes  bytes that one inner step's graph holds per image (metarepair.engine.memory)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from metarepair.engine.inner import FunctionalNet
from metarepair.engine.memory import Memory, graph_bytes
from metarepair.engine.meta_gradient import Order, task_gradient
from metarepair.engine.types import Batch, InnerRule, TaskBatch
from metarepair.engine.vectors import flatten
from metarepair.models.build import build_model

COUNTED, COUNTED_PIXELS = 2, 32  # images whose operations are counted, and their side


@dataclass(frozen=True, kw_only=True)
class NetTask:
    """A task of a net, with random weights and images, since time does not depend on them."""

    net: str
    pixels: int
    classes: int
    support: int
    query: int
    steps: int
    memory: Memory = "graph"

    def functional(self, module: nn.Module) -> FunctionalNet:
        """Return the module as a FunctionalNet with batch norm as in the default inner rule."""
        return FunctionalNet(module, InnerRule(steps=self.steps, rate=1e-6, batch_norm="adapt"))


@dataclass(frozen=True, kw_only=True)
class Operations:
    """A task's cost, independent of the processor."""

    parameters: int
    forward_flops: float
    flops: float
    operators: int
    last_share: float

    @property
    def gradient_bytes(self) -> int:
        return 4 * self.parameters


def build_net(spec: NetTask) -> nn.Module:
    """Build the net, with the same random weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(spec.net, spec.classes)


def random_task(spec: NetTask, seed: int) -> TaskBatch:
    """Return a task with normally distributed pixels and random labels."""
    generator = torch.Generator().manual_seed(seed)

    def batch(size: int) -> Batch:
        shape = (size, 3, spec.pixels, spec.pixels)
        return Batch(
            images_BCHW=torch.randn(shape, generator=generator).to(memory_format=torch.channels_last),
            labels_B=torch.randint(0, spec.classes, (size,), generator=generator),
        )

    return TaskBatch(support=batch(spec.support), query=batch(spec.query))


class _Operators(TorchDispatchMode):
    """Count the operators that compute something; operators that only make a view start nothing on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        returned = [r.alias_info for r in func._schema.returns]
        self.count += not any(alias is not None and not alias.is_write for alias in returned)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Counts:
    """Operations and operators of a task. Operations are in units of one image's forward pass.

    step: an inner step and its Hessian product, per support image. query: the query, per image.
    product: the Hessian product alone, per support image. operators: those of a task with one step.
    operators_step: those of each further step.
    """

    step: float
    query: float
    product: float
    operators: int
    operators_step: int


@cache
def _counts(net: str) -> _Counts:
    """Count tasks of two images of 32 px, with one step and with two; all counts are linear in images and steps."""
    spec = NetTask(net=net, pixels=COUNTED_PIXELS, classes=10, support=COUNTED, query=COUNTED, steps=1)
    module, forward = build_net(spec), COUNTED * forward_flops(spec)
    one = _counted(spec, module, "second")
    first = _counted(spec, module, "first")
    two = _counted(replace(spec, steps=2), module, "second")
    more = _counted(replace(spec, query=2 * COUNTED), module, "second")
    return _Counts(
        step=(two[0] - one[0]) / forward,
        query=(more[0] - one[0]) / forward,
        product=(one[0] - first[0]) / forward,
        operators=one[1],
        operators_step=two[1] - one[1],
    )


def _counted(spec: NetTask, module: nn.Module, order: Order) -> tuple[float, int]:
    """Count the operations and operators of one task."""
    net = spec.functional(module)
    with FlopCounterMode(display=False) as flops, _Operators() as operators:
        task_gradient(net, net.parameters(), net.buffers(), random_task(spec, 0), order=order)
    return float(flops.get_total_flops()), operators.count


def count_operations(spec: NetTask) -> Operations:
    """Return a task's operations, counted on small tasks and scaled by the forward pass at the task's own size."""
    counts, forward = _counts(spec.net), forward_flops(spec)
    whole = spec.steps * spec.support * counts.step + spec.query * counts.query
    return Operations(
        parameters=sum(p.numel() for p in build_net(spec).parameters()),
        forward_flops=forward,
        flops=whole * forward,
        operators=counts.operators + (spec.steps - 1) * counts.operators_step,
        last_share=spec.support * counts.product / whole,
    )


def forward_flops(spec: NetTask) -> float:
    """Count the operations of one image's forward pass, without computing it."""
    module = build_net(spec).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.empty(1, 3, spec.pixels, spec.pixels, device="meta"))
    return float(counter.get_total_flops())


def task_seconds(spec: NetTask, rounds: int, warm: bool = True) -> list[float]:
    """Time a task's gradient as one vector, computed as in the trainer."""
    net, task = spec.functional(build_net(spec)), random_task(spec, 0)

    def gradient() -> Tensor:
        found = task_gradient(net, net.parameters(), net.buffers(), task, memory=spec.memory)
        return flatten(found.gradient)

    return seconds_of(gradient, rounds, warm)


def flops_per_s(spec: NetTask) -> float:
    """Return the operations per second of one such task, without a warm-up."""
    return count_operations(spec).flops / task_seconds(spec, 1, warm=False)[0]


def forward_seconds(spec: NetTask, rounds: int) -> float:
    """Return the seconds of a forward pass per image, in a batch of the support's size."""
    module, images_BCHW = build_net(spec).eval(), random_task(spec, 0).support.images_BCHW
    with torch.inference_mode():
        found = seconds_of(lambda: module(images_BCHW), rounds)
    return statistics.median(found) / spec.support


def seconds_of(work: Callable[[], object], rounds: int, warm: bool = True) -> list[float]:
    """Return the seconds of each of `rounds` calls, after a warm-up call if `warm`."""
    if warm:
        work()
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return found


def graph_bytes_of_image(spec: NetTask) -> float:
    """Return the bytes that an inner step's graph holds per support image, from two batch sizes."""
    net = spec.functional(build_net(spec))
    few, more = (
        graph_bytes(
            net, net.parameters(), net.buffers(), random_task(replace(spec, support=images), 0).support
        )
        for images in (2, 3)
    )
    return float(more - few)

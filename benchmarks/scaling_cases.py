"""Build the cases of the scaling model and plan from measurements, with assumptions about links and GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.scaling_model import Line, Link, Processor, Training
from benchmarks.scaling_nets import NetTask, Operations, count_operations
from benchmarks.scaling_plan import Campaign, NetCosts
from benchmarks.scaling_rates import ImageRates

# Ethernet and InfiniBand at 90% of their nominal rate; NVLink at 80% of an H100's rate in each direction.
LINKS = (
    Link(name="10 Gbit/s", bytes_per_s=0.9 * 10e9 / 8, latency_s=30e-6),
    Link(name="25 Gbit/s", bytes_per_s=0.9 * 25e9 / 8, latency_s=30e-6),
    Link(name="100 Gbit/s", bytes_per_s=0.9 * 100e9 / 8, latency_s=10e-6, trees=True),
    Link(name="400 Gbit/s", bytes_per_s=0.9 * 400e9 / 8, latency_s=5e-6, trees=True),
    Link(name="NVLink", bytes_per_s=0.8 * 450e9, latency_s=3e-6, trees=True),
)
# Data-centre GPUs of 2020 to 2023 peak at 312 to 989 TFLOP/s in bfloat16; an eager operator starts every 10 µs.
GPU = Processor(name="GPU", flops_per_s=100e12, operator_s=10e-6)
# CUDA graphs, which MetaRepair does not use, would avoid the time to start operators.
PROCESSORS = {"GPU": GPU, "GPU with graphs": replace(GPU, operator_s=0.0)}
GPU_BYTES_PER_S = 1.5e12  # memory bandwidth, which limits adding two gradients


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All inputs of the model and the plan."""

    operations: Mapping[str, Operations]
    task_s: Mapping[str, float]
    outer_s: Mapping[str, float]
    add_s: Mapping[str, float]
    batch_s: float
    line: Line
    rates: ImageRates
    graph_bytes: Mapping[str, float]
    rate_at_224: Mapping[str, float]

    def training(self, net: str, tasks: int, on: Processor | None = None) -> Training:
        """Return a net's training on cores of this machine, or on an assumed processor."""
        operations = self.operations[net]
        here = Training(
            tasks=tasks,
            task_s=self.task_s[net],
            batch_s=self.batch_s,
            add_s=self.add_s[net],
            outer_s=self.outer_s[net],
            gradient_bytes=operations.gradient_bytes,
        )
        if on is None:
            return here
        passes = operations.gradient_bytes / GPU_BYTES_PER_S
        return replace(
            here,
            task_s=on.seconds(operations.flops, operations.operators),
            add_s=3 * passes,
            outer_s=10 * passes,
            batch_s=0.0,
        )


def costs_at_224(measured: Measured, campaign: Campaign) -> list[NetCosts]:
    """Return both nets' costs on ImageNet tasks: one support example per class, 100 query examples, K = 3."""
    found = []
    for net in measured.graph_bytes:
        spec = NetTask(
            net=net, pixels=224, classes=campaign.classes, support=campaign.classes, query=100, steps=3
        )
        task = count_operations(spec)
        found.append(
            NetCosts(
                net=net,
                task=task,
                adapt_flops=(3 * spec.steps * spec.support + spec.query) * task.forward_flops,
                forward_s=measured.rates.classify_s[net],
                core=Processor(name="one core", flops_per_s=measured.rate_at_224[net]),
            )
        )
    return found

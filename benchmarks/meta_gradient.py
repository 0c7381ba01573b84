"""A task of DenseNet-121 in, time and memory of its exact meta-gradient out: ours against `higher` and a floor.

    graph      metarepair.meta_gradient, memory: graph
    recompute  the same, memory: recompute
    higher     higher.innerloop_ctx (Grefenstette et al. 2019), where it is installed
    floor      K × (one support gradient and one Hessian-vector product) + one query gradient, measured alone

32 px, 50 support and 50 query images, K = 3 inner steps, batch norm by the own batch; memory at K = 10.
Command: python -m benchmarks.meta_gradient [--quick] [--json FILE] [--device cuda]
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.measure import interleave, machine, parser, peak_resident_bytes, publish
from metarepair.inner import Batch, FunctionalNet, InnerRule, gradients_of
from metarepair.meta_gradient import Memory, TaskBatch, task_gradient
from metarepair.vectors import State

RATE = 0.01
HIGHER_MISSING = (
    "`higher` is not installed, so nothing is compared with it and its keys are left out: pip install higher"
)
MEANING = {
    "time_graph_over_higher": "time of `graph` over that of higher (less is better)",
    "time_recompute_over_graph": "what recomputation costs in time",
    "time_graph_over_floor": "time of `graph` over the floor (1 is the least that can be)",
    "memory_recompute_over_higher_k10": "peak memory of `recompute` over that of higher, K = 10 (less is better)",
    "memory_recompute_over_graph_k10": "the same over `graph`",
    "grad_rel_norm_diff": "‖graph − higher‖ / ‖higher‖",
    "grad_rel_norm_diff_recompute": "‖recompute − graph‖ / ‖graph‖",
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    batch: int
    steps: int
    memory_steps: int
    rounds: int


def sizes(*, quick: bool, smoke: bool) -> Sizes:
    """The sizes are the same for --quick, which only repeats less."""
    if smoke:
        return Sizes(batch=2, steps=1, memory_steps=2, rounds=1)
    return Sizes(batch=50, steps=3, memory_steps=10, rounds=2 if quick else 7)


class Case:
    """A DNN, a task, and the ways to its meta-gradient."""

    def __init__(self, *, batch: int, steps: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = timm.create_model("densenet121", num_classes=10).to(device)
        self.module.to(memory_format=torch.channels_last)
        self.steps = steps
        self.rule = InnerRule(steps=steps, rate=RATE, batch_norm="batch")
        self.task = TaskBatch(support=_batch(batch, device), query=_batch(batch, device))
        self.net = FunctionalNet(self.module, self.rule)
        self.start, self.buffers = self.net.parameters(), self.net.buffers()

    def ours(self, memory: Memory) -> Tensor:
        """The project's gradient, as one vector."""
        found = task_gradient(self.net, self.start, self.buffers, self.task, memory=memory).gradient
        return torch.cat([g.reshape(-1) for g in found.values()])

    def higher(self) -> Tensor:
        """The same gradient by unrolling with `higher`."""
        higher = import_module("higher")
        module = self.module.train()
        optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
        support, query = self.task.support, self.task.query
        with higher.innerloop_ctx(module, optimizer, copy_initial_weights=False) as (unrolled, inner):
            for _ in range(self.steps):
                inner.step(cross_entropy(unrolled(support.images_BCHW), support.labels_B))
            loss = cross_entropy(unrolled(query.images_BCHW), query.labels_B)
            gradients = torch.autograd.grad(loss, list(module.parameters()))
        module.eval()
        return torch.cat([g.reshape(-1) for g in gradients])

    def floor(self) -> None:
        """The work that no exact way is spared: each step's Hessian-vector product with the gradient it needs."""
        leaves = self._leaves()
        v = gradients_of(self.net.query(leaves, self.buffers, self.task.query)[0], list(leaves.values()))
        for _ in range(self.steps):
            leaves = self._leaves()
            loss, _ = self.net.support(leaves, self.buffers, self.task.support)
            gradients = gradients_of(loss, list(leaves.values()), create_graph=True)
            torch.autograd.grad(
                gradients, list(leaves.values()), grad_outputs=v, allow_unused=True, materialize_grads=True
            )

    def _leaves(self) -> State:
        return {k: p.detach().requires_grad_() for k, p in self.start.items()}

    def ways(self) -> dict[str, Callable[[], object]]:
        """Every way by name; `higher` where it is installed."""
        found: dict[str, Callable[[], object]] = {
            "graph": partial(self.ours, "graph"),
            "recompute": partial(self.ours, "recompute"),
        }
        if find_spec("higher"):
            found["higher"] = self.higher
        return found | {"floor": self.floor}


def _batch(size: int, device: torch.device) -> Batch:
    images_BCHW = torch.randn(size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    return Batch(images_BCHW=images_BCHW, labels_B=torch.randint(0, 10, (size,), device=device))


def peak_bytes(way: str, *, batch: int, steps: int, device: torch.device) -> int:
    """Peak memory of one gradient above what stood before it, in this process."""
    Case(batch=2, steps=1, device=device).ways()[
        way
    ]()  # kernels and threads are loaded before the count begins
    case = Case(batch=batch, steps=steps, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case.ways()[way]()
        return torch.cuda.max_memory_allocated() - before
    return peak_resident_bytes(case.ways()[way])


def peak_in_child(way: str, *, batch: int, steps: int, device: torch.device) -> int:
    """`peak_bytes` in a process of its own: an allocator gives little back, so a used one shows nothing."""
    options = ["--peak", way, "--batch", str(batch), "--steps", str(steps), "--device", device.type]
    command = [sys.executable, "-m", "benchmarks.meta_gradient", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = int(done.stdout.split()[-1])
    print(f"  peak memory, K = {steps}  {way:12s} {found / 2**20:9.0f} MiB", flush=True)
    return found


def relative_difference(a_P: Tensor, b_P: Tensor) -> float:
    """In norm, relative to b."""
    return float((a_P - b_P).norm() / b_P.norm())


def measure(size: Sizes, device: torch.device, path: Path | None, *, smoke: bool) -> None:
    """Times, memory and agreement of all ways that there are."""
    around = machine("metarepair", "torch", "timm", "higher") | {"device": device.type}
    case = Case(batch=size.batch, steps=size.steps, device=device)
    ways = case.ways()
    graph_P, recompute_P = case.ours("graph"), case.ours("recompute")  # these warm up as well
    figures = {"grad_rel_norm_diff_recompute": relative_difference(recompute_P, graph_P)}
    if "higher" in ways:
        figures["grad_rel_norm_diff"] = relative_difference(graph_P, case.higher())
    del graph_P, recompute_P
    finish = torch.cuda.synchronize if device.type == "cuda" else None
    rounds = {name: (lambda _, run=run: run()) for name, run in ways.items()}
    times = interleave(rounds, rounds=size.rounds, finish=finish)
    figures["time_recompute_over_graph"] = times.ratio("recompute", "graph")
    figures["time_graph_over_floor"] = times.ratio("graph", "floor")
    peaks = {
        way: peak_in_child(way, batch=size.batch, steps=size.memory_steps, device=device)
        for way in ways
        if way != "floor"
    }
    figures["memory_recompute_over_graph_k10"] = peaks["recompute"] / max(peaks["graph"], 1)
    if "higher" in ways:
        figures["time_graph_over_higher"] = times.ratio("graph", "higher")
        figures["memory_recompute_over_higher_k10"] = peaks["recompute"] / max(peaks["higher"], 1)
    publish(figures, meaning=MEANING, around=around, times=times, path=path, smoke=smoke)
    if "higher" not in ways:
        print(HIGHER_MISSING)


def main() -> None:
    """Measures and prints; as a child, prints the peak memory of one way in bytes."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument(
        "--peak", choices=["graph", "recompute", "higher"], help="print one way's peak bytes"
    )
    options.add_argument("--batch", type=int, default=50, help="support and query images, for --peak")
    options.add_argument("--steps", type=int, default=10, help="inner steps, for --peak")
    given = options.parse_args()
    device = torch.device(given.device)
    if given.peak:
        print(peak_bytes(given.peak, batch=given.batch, steps=given.steps, device=device))
        return
    size = sizes(quick=given.quick, smoke=given.smoke)
    measure(size, device, given.json, smoke=given.smoke)


if __name__ == "__main__":
    main()

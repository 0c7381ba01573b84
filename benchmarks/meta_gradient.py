"""Measure time and memory of the exact meta-gradient: ours against peers and a lower bound.

    graph      metarepair.engine.meta_gradient, memory: graph
    recompute  the same, memory: recompute
    higher     higher.innerloop_ctx (Grefenstette et al. 2019)
    torchopt   TorchOpt's functional SGD (Ren et al. 2023)
    torch      torch.func.functional_call in a loop, all steps in one graph
    floor      K × (one support gradient and one Hessian-vector product) + one query gradient, measured alone

DenseNet-121 and ConvNeXt-tiny, 32 px, 50 support and 50 query images, K in {1, 3, 10} inner steps; batch norm uses
each batch's own statistics. Peak memory is measured at K = 10, each way in a separate process.
Command: python -m benchmarks.meta_gradient [--quick] [--json FILE] [--device cuda] [--without PEER]
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

from benchmarks.measure import (
    Peer,
    Times,
    add_peers,
    interleave,
    machine,
    parser,
    peak_resident_bytes,
    publish,
    require_peers,
)
from benchmarks.meta_gradient_peers import higher_gradient, torch_func_gradient, torchopt_gradient
from metarepair.data.batches import image_batch
from metarepair.engine.inner import FunctionalNet, gradients_of
from metarepair.engine.meta_gradient import Memory, task_gradient
from metarepair.engine.types import Batch, InnerRule, TaskBatch
from metarepair.engine.vectors import State, flatten
from metarepair.models.build import load_deployed
from tasks.corruptions import corrupt
from tasks.datasets import dataset_info, load_dataset

RATE = 0.01
PEERS = {"higher": higher_gradient, "torchopt": torchopt_gradient, "torch": torch_func_gradient}
INSTALLED = (Peer(name="higher", module="higher"), Peer(name="torchopt", module="torchopt"))
MEANING = {
    "time_graph_over_higher": "time of `graph` over that of higher (less is better)",
    "time_graph_over_torchopt": "the same over TorchOpt's",
    "time_graph_over_torch": "the same over the plain torch.func loop's",
    "time_recompute_over_graph": "what recomputation costs in time",
    "time_graph_over_floor": "time of `graph` over the floor (1 is the lower bound)",
    "memory_recompute_over_higher_k10": "peak memory of `recompute` over that of higher, K = 10 (less is better)",
    "memory_recompute_over_graph_k10": "the same over `graph`",
    "grad_rel_norm_diff": "‖graph − higher‖ / ‖higher‖",
    "grad_rel_norm_diff_recompute": "‖recompute − graph‖ / ‖graph‖",
    "bf16_cosine": "cosine of the gradients with bfloat16 autocast and with float32",
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured. The first net, at the middle of `steps`, gives the figures without a net's name."""

    nets: tuple[str, ...]
    batch: int
    steps: tuple[int, ...]
    rounds: int
    without: tuple[str, ...] = ()

    @property
    def headline(self) -> tuple[str, int]:
        return self.nets[0], self.steps[len(self.steps) // 2]


def sizes(*, quick: bool, smoke: bool) -> Sizes:
    """Return the sizes. --quick measures only the first net at K = 3, with fewer rounds."""
    if smoke:
        return Sizes(nets=("densenet121",), batch=2, steps=(1,), rounds=1)
    if quick:
        return Sizes(nets=("densenet121",), batch=50, steps=(3,), rounds=2)
    return Sizes(nets=("densenet121", "convnext_tiny"), batch=50, steps=(1, 3, 10), rounds=5)


class Case:
    """A DNN, a task, and the ways to compute its meta-gradient."""

    def __init__(self, net: str, *, batch: int, steps: int, device: torch.device, bf16: bool = False) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = timm.create_model(net, num_classes=10).to(device)
        self.module.to(memory_format=torch.channels_last)
        self.steps = steps
        self.rule = InnerRule(steps=steps, rate=RATE, batch_norm="batch")
        self.task = TaskBatch(support=_batch(batch, device), query=_batch(batch, device))
        self.net = FunctionalNet(self.module, self.rule, bf16=bf16)
        self.start, self.buffers = self.net.parameters(), self.net.buffers()

    def ours(self, memory: Memory) -> Tensor:
        """Return MetaRepair's gradient as one vector."""
        found = task_gradient(self.net, self.start, self.buffers, self.task, memory=memory)
        return flatten(found.gradient)

    def floor(self) -> None:
        """Do the work that every exact way needs: each step's Hessian-vector product and the gradient for it."""
        leaves = self._leaves()
        with self.net.query(leaves, self.buffers, self.task.query) as found:
            v = gradients_of(self.net, found.loss, list(leaves.values()))
        for _ in range(self.steps):
            leaves = self._leaves()
            with self.net.support(leaves, self.buffers, self.task.support) as found:
                gradients = gradients_of(self.net, found.loss, list(leaves.values()), create_graph=True)
                torch.autograd.grad(
                    gradients,
                    list(leaves.values()),
                    grad_outputs=v,
                    allow_unused=True,
                    materialize_grads=True,
                )

    def _leaves(self) -> State:
        return {k: p.detach().requires_grad_() for k, p in self.start.items()}

    def ways(self) -> dict[str, Callable[[], object]]:
        """Return every way by name. A peer is imported only when it is called."""
        found: dict[str, Callable[[], object]] = {
            "graph": partial(self.ours, "graph"),
            "recompute": partial(self.ours, "recompute"),
        }
        for name, peer in PEERS.items():
            found[name] = partial(peer, self.module, self.task, steps=self.steps, rate=RATE)
        return found | {"floor": self.floor}


def _batch(size: int, device: torch.device) -> Batch:
    images_BCHW = torch.randn(size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    return Batch(images_BCHW=images_BCHW, labels_B=torch.randint(0, 10, (size,), device=device))


def peak_bytes(way: str, net: str, *, batch: int, steps: int, device: torch.device) -> int:
    """Return the growth of peak memory during one gradient, in this process."""
    Case(net, batch=2, steps=1, device=device).ways()[way]()  # load kernels before measuring
    case = Case(net, batch=batch, steps=steps, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case.ways()[way]()
        return torch.cuda.max_memory_allocated() - before
    return peak_resident_bytes(case.ways()[way])


def peak_in_child(way: str, net: str, *, batch: int, steps: int, device: torch.device) -> float:
    """Return `peak_bytes` in MiB, from a new process: a used allocator returns little memory and would hide it."""
    options = ["--peak", way, "--net", net, "--batch", str(batch), "--steps", str(steps)]
    command = [sys.executable, "-m", "benchmarks.meta_gradient", *options, "--device", device.type]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = int(done.stdout.split()[-1]) / 2**20
    print(f"  peak memory, {net}, K = {steps}  {way:12s} {found:9.0f} MiB", flush=True)
    return found


def relative_difference(a_P: Tensor, b_P: Tensor) -> float:
    """Return the norm of the difference, relative to b."""
    return float((a_P - b_P).norm() / b_P.norm())


@dataclass
class Report:
    """The figures collected so far: scalars for the headline case, columns over all cases."""

    figures: dict[str, float | dict[str, float | str]]
    rounds_s: dict[str, list[float]]

    def column(self, name: str, row: str, value: float) -> None:
        column = self.figures.setdefault(name, {})
        assert isinstance(column, dict)
        column[row] = value


def measure_time(
    report: Report, case: Case, row: str, *, rounds: int, headline: bool, without: Sequence[str]
) -> None:
    """Measure interleaved times of all ways, and how much their gradients differ."""
    ways = {name: run for name, run in case.ways().items() if name not in without}
    vectors = {name: run() for name, run in ways.items() if name in ("graph", "recompute", "higher")}
    finish = torch.cuda.synchronize if case.task.query.labels_B.is_cuda else None
    times = interleave(
        {name: (lambda _, run=run: run()) for name, run in ways.items()}, rounds=rounds, finish=finish
    )
    report.rounds_s |= {f"{row} {name}": seconds for name, seconds in times.rounds_s.items()}
    for name in ways:
        report.column(f"{name}_s", row, times.median(name))
    pairs = [("graph", name) for name in (*PEERS, "floor") if name in ways] + [("recompute", "graph")]
    for above, below in pairs:
        ratio = times.ratio(above, below)
        report.column(f"{above}/{below}", row, ratio)
        if headline:
            report.figures[f"time_{above}_over_{below}"] = ratio
    differences = {
        "grad_rel_norm_diff_recompute": ("recompute", "graph"),
        "grad_rel_norm_diff": ("graph", "higher"),
    }
    for key, (a, b) in differences.items() if headline else ():
        if b in vectors:
            report.figures[key] = relative_difference(vectors[a], vectors[b])  # type: ignore[arg-type]


def measure_memory(report: Report, case: Case, net: str, size: Sizes, device: torch.device) -> None:
    """Measure each way's peak memory at the largest K."""
    steps = size.steps[-1] if len(size.steps) > 1 else 10 if size.batch > 2 else 2
    peaks = {
        way: peak_in_child(way, net, batch=size.batch, steps=steps, device=device)
        for way in case.ways()
        if way != "floor" and way not in size.without
    }
    for way, mib in peaks.items():
        report.column(f"{net}_MiB", way, mib)
    if net == size.headline[0]:
        for other in ("graph", "higher"):
            if other in peaks:
                ratio = peaks["recompute"] / max(peaks[other], 1e-9)
                report.figures[f"memory_recompute_over_{other}_k10"] = ratio


def bf16_cosine(net: str, size: Sizes, device: torch.device) -> float:
    """Return the cosine of the meta-gradients with and without autocast, for random weights and images."""
    low, full = (
        Case(net, batch=size.batch, steps=size.headline[1], device=device, bf16=bf16).ours("recompute")
        for bf16 in (True, False)
    )
    return float(torch.cosine_similarity(low.double(), full.double(), dim=0))


def trained_bf16_cosine(steps: int, device: torch.device) -> float:
    """Return the same for the shipped ResNet-8 on sample images under gaussian noise of severity 5."""
    info = dataset_info("cifar10_sample")
    deployed = load_deployed("resnet8_cifar", "shipped:resnet8_cifar10", info, device=device)
    sample, rows = load_dataset("cifar10_sample", "train", root=None), np.arange(200)
    noisy = corrupt(sample.images(rows), image_ids_B=rows, corruption="gaussian_noise", severity=5, seed=0)
    whole = image_batch(deployed, noisy, sample.labels_N[rows])
    task = TaskBatch(
        support=Batch(images_BCHW=whole.images_BCHW[:100], labels_B=whole.labels_B[:100]),
        query=Batch(images_BCHW=whole.images_BCHW[100:], labels_B=whole.labels_B[100:]),
    )
    rule = InnerRule(steps=steps, rate=0.03, batch_norm="adapt", batch_norm_momentum=0.5)
    nets = [FunctionalNet(deployed.module, rule, bf16=bf16) for bf16 in (True, False)]
    low, full = (flatten(task_gradient(n, n.parameters(), n.buffers(), task).gradient) for n in nets)
    return float(torch.cosine_similarity(low.double(), full.double(), dim=0))


def measure(size: Sizes, device: torch.device, path: Path | None, *, smoke: bool) -> None:
    """Measure times, memory and agreement of all ways but those in `size.without`."""
    around = machine("metarepair", "torch", "timm", "higher", "torchopt")
    around |= {"device": device.type, "without": ", ".join(size.without) or "no peer"}
    report = Report(figures={}, rounds_s={})
    for net in size.nets:
        for steps in size.steps:
            case = Case(net, batch=size.batch, steps=steps, device=device)
            here = (net, steps) == size.headline
            measure_time(
                report,
                case,
                f"{net} K={steps}",
                rounds=size.rounds,
                headline=here,
                without=size.without,
            )
        report.column("bf16_cosine", net, bf16_cosine(net, size, device))
        measure_memory(report, case, net, size, device)
    for steps in size.steps:
        report.column("bf16_cosine", f"trained resnet8 K={steps}", trained_bf16_cosine(steps, device))
    meaning = {name: MEANING.get(name, "by net and K, or by way") for name in report.figures}
    publish(
        report.figures, meaning=meaning, around=around, times=Times(report.rounds_s), path=path, smoke=smoke
    )


def main() -> None:
    """Run the benchmark from the command line; with --peak, print the peak memory of one way in bytes."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument("--peak", choices=["graph", "recompute", *PEERS], help="print one way's peak bytes")
    options.add_argument("--rounds", type=int, help="how often each way is timed")
    options.add_argument("--net", default="densenet121", help="timm name, for --peak")
    options.add_argument("--batch", type=int, default=50, help="support and query images, for --peak")
    options.add_argument("--steps", type=int, default=10, help="inner steps, for --peak")
    add_peers(options, INSTALLED)
    given = options.parse_args()
    device = torch.device(given.device)
    if given.peak:
        print(peak_bytes(given.peak, given.net, batch=given.batch, steps=given.steps, device=device))
        return
    require_peers(INSTALLED, without=given.without)
    size = replace(sizes(quick=given.quick, smoke=given.smoke), without=tuple(given.without))
    if given.rounds:
        size = replace(size, rounds=given.rounds)
    measure(size, device, given.json, smoke=given.smoke)


if __name__ == "__main__":
    main()

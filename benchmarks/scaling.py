"""Model training on 1 to 1,024 workers, and plan ImageNet-C, from measurements on this machine.

    measured   here, one thread per worker: tasks (ResNet-8, DenseNet-121; ConvNeXt-B with --full), all-reduces of two
               gloo ranks, trivial items of two actors, tasks read from a store, steps for one image at 224 px
    modelled   episodes on any number of workers (benchmarks.scaling_model), tasks at 224 px (operations over a rate)
    assumed    links, and the sustained speed of a GPU (benchmarks.scaling_cases)

The model is compared with episodes of the real trainer on one and on two ranks.
Command: python -m benchmarks.scaling [--quick] [--full] [--json FILE] [--figure FILE.png]
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks import scaling_pages
from benchmarks.gloo_ranks import all_reduce_rounds, episode_rounds, median_ratio, on_ranks, overlap_rounds
from benchmarks.measure import Figure, Times, machine, parser, publish
from benchmarks.ray_here import items_per_s, small_ray
from benchmarks.scaling_cases import GPU, LINKS, PROCESSORS, Measured, costs_at_224
from benchmarks.scaling_model import episode, fit_line, link_of
from benchmarks.scaling_nets import (
    NetTask,
    build_net,
    count_operations,
    flops_per_s,
    forward_seconds,
    graph_bytes_of_image,
    seconds_of,
    task_seconds,
)
from benchmarks.scaling_plan import Campaign
from benchmarks.scaling_rates import batch_seconds, measure_rates, store_tasks_per_s
from metarepair.config.training import TrainConfig
from metarepair.engine.memory import Memory
from metarepair.meta_training.outer import all_finite, build_optimizer, outer_step

SMALL = "densenet121"
MEANING = {
    "task_s": "seconds per task (100 + 100 images of 32 px, K = 3); without --full, modelled for the largest net",
    "task_tflop": "operations of that task, counted",
    "operators": "operators that compute in a task: an eager GPU starts each one separately",
    "gradient_mb": "size of a gradient, in MB: reduced once per episode",
    "outer_s": "seconds of the outer step (Adam, and the check for non-finite values)",
    "batch_s": "seconds to make a task's batch from pixels that are already read",
    "add_s": "seconds to add two gradients",
    "graph_mb_at_224": "MB that an inner step's graph holds for each support image of 224 px",
    "gflop_per_s_at_224": "GFLOP per second in a task of 4 + 4 images of 224 px, K = 1",
    "all_reduce_start_s": "two ranks: seconds of an empty all-reduce, from a line fitted through all sizes",
    "all_reduce_gb_per_s": "two ranks: GB per second, from the same line",
    "all_reduce_fit_error": "largest relative distance of a size's median from that line",
    "actor_items_per_s": "trivial items per second through two actors (distributed.on_ray.pool)",
    "store_tasks_per_s": "tasks per second from a store of 32 px images in the page cache",
    "error_1_worker": "model over measurement − 1: an episode of the real trainer on one rank",
    "beside_over_alone": "seconds of a task while another rank differentiates one, over those of a task alone",
    "error_2_workers": "the same on two ranks; the model uses the seconds of tasks that run side by side",
    "measured_efficiency_2": "time on one rank over twice the time on two, measured",
    "modelled_efficiency_2": "the same, modelled",
    "advance_over_end": "measured, two ranks: reducing the earlier tasks in advance over reducing once at the end",
    "operations_error": "a task's seconds computed from its operations, over its measured seconds, − 1",
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    task: NetTask
    rounds: int
    warm: bool
    megabytes: tuple[int, ...]
    episode_tasks: int
    images: int
    store_rows: int
    large: str
    smoke: bool


def sizes(*, quick: bool, smoke: bool) -> Sizes:
    """Return the sizes. --quick repeats less, with fewer tasks per episode."""
    task = NetTask(net=SMALL, pixels=32, classes=10, support=100, query=100, steps=3)
    if smoke:
        task = replace(task, support=2, query=2, steps=1)
        return Sizes(
            task=task,
            rounds=1,
            warm=False,
            megabytes=(1, 2),
            episode_tasks=2,
            images=1,
            store_rows=8192,
            large="convnext_atto",
            smoke=True,
        )
    return Sizes(
        task=task,
        rounds=1 if quick else 3,
        warm=not quick,
        megabytes=(1, 2, 4, 8, 16, 32, 64, 128),
        episode_tasks=2 if quick else 4,
        images=4,
        store_rows=100_000,
        large="convnext_base",
        smoke=False,
    )


def outer_seconds(spec: NetTask, rounds: int) -> tuple[float, float]:
    """Return the seconds of an outer step, and of adding two gradients."""
    parameters = {k: v.detach().clone() for k, v in build_net(spec).named_parameters()}
    optimizer = build_optimizer(TrainConfig(), parameters)
    gradients = {k: torch.ones_like(v) for k, v in parameters.items()}

    def step() -> None:
        outer_step(optimizer, parameters, gradients, 1e-3)
        all_finite(parameters)

    a, b = (torch.ones(sum(v.numel() for v in parameters.values())) for _ in range(2))
    return statistics.median(seconds_of(step, rounds)), statistics.median(seconds_of(lambda: a + b, rounds))


def measure_nets(size: Sizes, *, full: bool) -> dict[str, dict[str, Any]]:
    """Measure tasks, outer steps and operations of each net; unless `full`, the largest net's task is modelled."""
    found: dict[str, dict[str, Any]] = {}
    for net in ("resnet8_cifar", SMALL, size.large):
        spec = replace(size.task, net=net)
        outer, add = outer_seconds(spec, 3 * size.rounds)
        operations = count_operations(spec)
        modelled = operations.flops * forward_seconds(spec, size.rounds) / operations.forward_flops
        row: dict[str, Any] = {"operations": operations, "outer_s": outer, "add_s": add, "task_s": modelled}
        if net != size.large or full:  # `graph` would hold three graphs and copies of 88 million parameters
            memory: Memory = "graph" if net != size.large else "recompute"
            rounds = size.rounds if net != size.large else 1
            once = task_seconds(replace(spec, memory=memory), rounds, size.warm)
            row["task_s"] = statistics.median(once)
            row["error"] = modelled / row["task_s"] - 1
        print(
            f"  {net:16s} {row['task_s']:.3g} s per task{'' if 'error' in row else ', modelled'}", flush=True
        )
        found[net] = row
    return found


def measure(size: Sizes, *, full: bool) -> tuple[Measured, dict[str, Figure], Times]:
    """Measure everything; return it as input of the model, as published figures, and as times."""
    nets = measure_nets(size, full=full)
    byte_sizes = [m * 1_000_000 for m in size.megabytes]
    reduced = on_ranks(all_reduce_rounds, byte_sizes, 8 + 4 * size.rounds, world=2)
    line = fit_line(list(reduced), [statistics.median(s) for s in reduced.values()])
    large = NetTask(net=SMALL, pixels=32 if size.smoke else 224, classes=1000, support=4, query=4, steps=1)
    measured = Measured(
        operations={net: row["operations"] for net, row in nets.items()},
        task_s={net: row["task_s"] for net, row in nets.items()},
        outer_s={net: row["outer_s"] for net, row in nets.items()},
        add_s={net: row["add_s"] for net, row in nets.items()},
        batch_s=batch_seconds(size.task, 3 * size.rounds),
        line=line,
        rates=measure_rates((SMALL, size.large), images=size.images, rounds=size.rounds, smoke=size.smoke),
        graph_bytes={net: graph_bytes_of_image(replace(large, net=net)) for net in (SMALL, size.large)},
        rate_at_224={net: flops_per_s(replace(large, net=net)) for net in (SMALL, size.large)},
    )
    trained = {net: measure_episodes(size, net) for net in ("resnet8_cifar", SMALL)}
    figures = figures_of(measured) | checked(measured, size, trained)
    with small_ray(2):
        figures["actor_items_per_s"] = items_per_s(20 if size.smoke else 1000, workers=2)
    figures["store_tasks_per_s"] = store_tasks_per_s(size.store_rows, 10 if size.smoke else 200, size.rounds)
    figures["operations_error"] = {net: row["error"] for net, row in nets.items() if "error" in row}
    rounds = {f"all-reduce {b / 1e6:.0f} MB": s for b, s in reduced.items()}
    rounds |= {f"episode {net} {w}": s for net, t in trained.items() for w, s in t.episodes.items()}
    return measured, figures, Times(rounds)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Measurements with the real trainer.

    episodes: seconds of each episode, by number of ranks. beside_s: seconds of a task while another runs.
    advance: time of reducing in advance over reducing at the end.
    """

    episodes: Mapping[int, list[float]]
    beside_s: float
    advance: float


def measure_episodes(size: Sizes, net: str) -> Trained:
    """Measure a net on one rank and on two."""
    spec, episodes = replace(size.task, net=net), {}
    for world in (1, 2):
        episodes[world] = on_ranks(
            episode_rounds, spec, size.episode_tasks, size.rounds, size.warm, world=world
        )
        print(f"  {net:16s} episode on {world}: {statistics.median(episodes[world]):.3g} s", flush=True)
    beside = on_ranks(task_seconds, spec, size.rounds, size.warm, world=2)
    # This takes minutes for a large net, and the result does not depend on the net.
    ways = on_ranks(overlap_rounds, spec, 2, size.rounds, world=2) if size.warm or net != SMALL else None
    return Trained(
        episodes=episodes,
        beside_s=statistics.median(beside),
        advance=math.nan if ways is None else median_ratio(ways["in advance"], ways["at the end"]),
    )


def figures_of(measured: Measured) -> dict[str, Figure]:
    """Return the measured figures, by net, and those of the all-reduce."""
    operations = measured.operations.items()
    return {
        "task_s": dict(measured.task_s),
        "task_tflop": {net: o.flops / 1e12 for net, o in operations},
        "operators": {net: float(o.operators) for net, o in operations},
        "gradient_mb": {net: o.gradient_bytes / 1e6 for net, o in operations},
        "outer_s": dict(measured.outer_s),
        "add_s": dict(measured.add_s),
        "graph_mb_at_224": {net: b / 1e6 for net, b in measured.graph_bytes.items()},
        "gflop_per_s_at_224": {net: rate / 1e9 for net, rate in measured.rate_at_224.items()},
        "batch_s": measured.batch_s,
        "all_reduce_start_s": measured.line.start_s,
        "all_reduce_gb_per_s": measured.line.per_s / 1e9,
        "all_reduce_fit_error": measured.line.worst,
    }


def checked(measured: Measured, size: Sizes, trained: Mapping[str, Trained]) -> dict[str, Figure]:
    """Compare the model's seconds with the trainer's, on one rank and on two that share this machine."""
    link = link_of(measured.line, "loopback")
    found: dict[str, dict[str, float | str]] = defaultdict(dict)
    for net, real in trained.items():
        alone = measured.training(net, size.episode_tasks)
        beside = replace(alone, task_s=real.beside_s)
        modelled = {1: episode(alone, 1, link).seconds, 2: episode(beside, 2, link).seconds}
        seconds = {world: statistics.median(rounds) for world, rounds in real.episodes.items()}
        found["beside_over_alone"][net] = real.beside_s / alone.task_s
        for world, name in ((1, "error_1_worker"), (2, "error_2_workers")):
            found[name][net] = modelled[world] / seconds[world] - 1
        found["measured_efficiency_2"][net] = seconds[1] / (2 * seconds[2])
        found["modelled_efficiency_2"][net] = modelled[1] / (2 * modelled[2])
        if not math.isnan(real.advance):
            found["advance_over_end"][net] = real.advance
    return dict(found)


def main() -> None:
    """Measure, print the tables of docs/scaling.md, and draw its figure."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--full", action="store_true", help="also run a task of ConvNeXt-B (minutes, 4 GB)")
    options.add_argument("--figure", metavar="FILE", help="draw efficiency by workers into a PNG file")
    given = options.parse_args()
    torch.set_num_threads(1)
    around = machine("metarepair", "torch", "ray", "timm")
    measured, figures, times = measure(sizes(quick=given.quick, smoke=given.smoke), full=given.full)
    publish(figures, meaning=MEANING, around=around, times=times, path=given.json, smoke=given.smoke)
    cases = {
        (net, kind): measured.training(net, 1024, PROCESSORS.get(kind))
        for net in measured.graph_bytes
        for kind in ("core", *PROCESSORS)
    }
    shares = {net: o.last_share for net, o in measured.operations.items()}
    campaign = Campaign()
    nets = costs_at_224(measured, campaign)
    pages = [
        scaling_pages.efficiency_pages(cases, LINKS),
        scaling_pages.overlap_page(cases, LINKS, shares),
        scaling_pages.plan_pages(campaign, measured.rates, nets, GPU, measured.graph_bytes),
    ]
    print("\n" + "\n\n".join(pages))
    if given.figure:
        scaling_pages.draw(cases, LINKS, given.figure)
    if given.json:
        content = json.loads(given.json.read_text(encoding="utf-8"))
        content["rates"] = asdict(measured.rates)
        content["efficiency"] = scaling_pages.efficiencies(cases, LINKS)
        content["plan"] = scaling_pages.plan_figures(campaign, measured.rates, nets, GPU)
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

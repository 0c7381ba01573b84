"""Measure what each work item costs Ray and the driver, at 100, 300 and 1,000 items on many small nodes.

    mine       shards of four clean images under three severities, by metarepair.stages.mining.mine_all
    features   shards of one collected example, by metarepair.stages.features.extract_all, moments included
    pairs      distances of environments with 64 features, by metarepair.stages.distances.all_distances
    trials     trials that do nothing, on Ray Tune (a tenth as many)

`ray.cluster_utils.Cluster` runs all nodes on this machine, each with its own raylet and one CPU, so that every actor
is on a different node. The stages are MetaRepair's own, on ResNet-8 and the shipped sample. If a cost grows faster
than the number of items, its exponent is above 1 and each further item costs more.
Command: python -m benchmarks.control_plane [--quick] [--json FILE]
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Figure, Times, machine, parser, peak_resident_bytes, publish
from benchmarks.ray_here import folder_for_ray
from benchmarks.ray_overhead import sweep
from benchmarks.scaling_model import Line, fit_line, growth
from distributed.stages.executor import executor_for
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.data.workspace import load_surroundings
from metarepair.features.files import write_moments
from metarepair.runs.layout import open_run
from metarepair.stages.distances import all_distances
from metarepair.stages.features import extract_all
from metarepair.stages.mining import mine_all
from tasks.distances.frechet import moments
from tasks.storage.manifest import Manifest

# Corruptions at which ResNet-8 fails often enough that a few images yield the failures to collect.
HARSH = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "glass_blur",
    "frost",
    "contrast",
    "pixelate",
    "zoom_blur",
)
IMAGES_OF_SHARD = 4
FEATURES = 64
STAGES = ("mine", "pairs", "trials")
MEANING = {
    "seconds": "seconds of a stage, including the start of its actors",
    "driver_s": "CPU seconds of the driver",
    "driver_mib": "peak growth of the driver's memory during the stage, MiB",
    "start_s": "seconds of a stage without items, from a line fitted through its counts",
    "items_per_s": "items per second after the start, from the same line",
    "driver_ms_per_item": "CPU milliseconds of the driver per item, from a line of its own",
    "exponent": "e in seconds ~ items^e",
    "exponent_driver": "the same for the driver's CPU seconds",
    "exponent_memory": "the same for the driver's memory",
    "dearer": "driver's CPU per item above the middle count over that below it: linear 1, quadratic 3.25",
    "nodes": "number of nodes in the cluster",
    "cluster_gib": "memory of this machine that the empty cluster uses, GiB",
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured. counts: items of a stage; of trials, a tenth as many."""

    nodes: int
    actors: int
    counts: tuple[int, ...]


def sizes(*, quick: bool, smoke: bool) -> Sizes:
    """Return the sizes. --quick uses the same counts and half the nodes."""
    if smoke:
        return Sizes(nodes=3, actors=2, counts=(20, 40))
    return Sizes(nodes=10 if quick else 20, actors=4, counts=(100, 300, 1000))


@contextmanager
def cluster_of(nodes: int) -> Iterator[None]:
    """Run a cluster on this machine: a head without CPUs and `nodes` nodes with one CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    with folder_for_ray() as folder:
        # The nodes need little object memory: the stages pass only paths and counts.
        little = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": str(folder / "ray"), **little}
        )
        try:
            for _ in range(nodes):
                cluster.add_node(num_cpus=1, **little)
            cluster.wait_for_nodes()
            ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
            yield
        finally:
            ray.shutdown()
            cluster.shutdown()


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a stage with `items` items."""

    items: int
    wall_s: float
    driver_s: float
    driver_bytes: int


def cost_of(items: int, work: Callable[[], object]) -> Cost:
    """Measure seconds, the driver's CPU seconds and its memory. Sampling the memory costs the driver a little, too."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    peak = peak_resident_bytes(work)
    return Cost(
        items=items,
        wall_s=time.perf_counter() - wall,
        driver_s=time.process_time() - cpu,
        driver_bytes=peak,
    )


def config_of(storage: Path, items: int, actors: int) -> Config:
    """Return a run of ten environments with `items` shards to mine, and as many to extract features from."""
    shards = items // (len(HARSH) + 1)
    images = shards * IMAGES_OF_SHARD
    return parse_config(
        {
            "name": f"items-{items}",
            "storage_path": str(storage),
            "device": "cpu",
            "workers": actors,
            "targets": [HARSH[0]],
            "data": {"max_train_images": images, "max_test_images": images},
            "mining": {
                "experiences": list(HARSH),
                "severities": [3, 4, 5],
                "collect": shards,
                "shard_images": IMAGES_OF_SHARD,
            },
            "features": {"extractor": "deployed", "shard_images": 1},
        }
    )


def stage_costs(storage: Path, items: int, actors: int) -> dict[str, Cost]:
    """Measure mining, then the extraction of features from what was mined."""
    config = config_of(storage, items, actors)
    run, here = open_run(config), load_surroundings(config)
    here.inputs()  # loaded now, since reading the sample is not a cost of the cluster
    mined: dict[Any, Manifest] = {}
    mining = cost_of(items, lambda: mined.update(mine_all(run, config, here, executor_for(config), kit=None)))
    examined = sum(sum(manifest.facts["examined"].values()) for manifest in mined.values())
    assert examined == IMAGES_OF_SHARD * items * len(config.mining.severities)
    shards = sum(manifest.rows["collect"] for manifest in mined.values())
    return {
        "mine": mining,
        "features": cost_of(shards, lambda: extract_all(run, config, mined, executor_for(config))),
    }


def pair_costs(storage: Path, pairs: int, actors: int) -> Cost:
    """Measure the distances of enough environments to form at least `pairs` pairs."""
    count = next(n for n in range(2, pairs + 2) if n * (n - 1) // 2 >= pairs)
    generator, paths = np.random.default_rng(0), []
    executor = executor_for(config_of(storage, len(HARSH) + 1, actors))
    for number in range(count):
        paths.append(storage / f"moments-{pairs}-{number}.npy")
        features_ND = generator.standard_normal((2 * FEATURES, FEATURES)).astype(np.float32)
        write_moments(paths[-1], moments(features_ND))
    return cost_of(count * (count - 1) // 2, lambda: all_distances(paths, executor))


def measure(size: Sizes, folder: Path, stages: Sequence[str]) -> dict[str, list[Cost]]:
    """Measure the stages at every count. The first small one warms up, so that loading is not counted."""
    found: dict[str, list[Cost]] = defaultdict(list)
    for number, items in enumerate((size.counts[0], *size.counts)):
        storage = folder / str(number)
        storage.mkdir()
        trials = max(2, items // 10)
        costs: dict[str, Cost] = {}
        if "mine" in stages:
            costs |= stage_costs(storage, items, size.actors)
        if "pairs" in stages:
            costs["pairs"] = pair_costs(storage, items, size.actors)
        if "trials" in stages:
            costs["trials"] = cost_of(trials, partial(sweep, trials, size.actors, "trials", storage))
        for stage, cost in costs.items():
            note = "" if number else "  (warms up)"
            print(
                f"  {stage:9s} {cost.items:5d} items  {cost.wall_s:7.1f} s, {cost.items / cost.wall_s:7.1f} items/s, "
                f"driver {cost.driver_s:6.2f} s, {cost.driver_bytes / 2**20:6.1f} MiB{note}",
                flush=True,
            )
            if number:
                found[stage].append(cost)
    return found


def dearer(costs: Sequence[Cost]) -> float:
    """Return the driver's cost per item between the last two counts, over that between the two before."""
    marginal = [(b.driver_s - a.driver_s) / (b.items - a.items) for a, b in pairwise(costs)]
    return marginal[-1] / max(marginal[-2], 1e-9) if len(marginal) > 1 else math.nan


def figures_of(costs: Mapping[str, Sequence[Cost]]) -> dict[str, Figure]:
    """Return the figures: columns by stage and count, then by stage."""
    rows = [(f"{stage} {cost.items}", cost) for stage, found in costs.items() for cost in found]

    def by_stage(value: Callable[[Sequence[Cost]], float]) -> dict[str, float | str]:
        return {stage: value(found) for stage, found in costs.items()}

    def line(found: Sequence[Cost], value: Callable[[Cost], float]) -> Line:
        return fit_line([c.items for c in found], [value(c) for c in found])

    def exponent(value: Callable[[Cost], float]) -> dict[str, float | str]:
        return by_stage(lambda found: growth([c.items for c in found], [max(value(c), 1e-3) for c in found]))

    return {
        "seconds": {row: cost.wall_s for row, cost in rows},
        "driver_s": {row: cost.driver_s for row, cost in rows},
        "driver_mib": {row: cost.driver_bytes / 2**20 for row, cost in rows},
        "start_s": by_stage(lambda found: line(found, lambda c: c.wall_s).start_s),
        "items_per_s": by_stage(lambda found: line(found, lambda c: c.wall_s).per_s),
        "driver_ms_per_item": by_stage(lambda found: 1e3 / line(found, lambda c: c.driver_s).per_s),
        "exponent": exponent(lambda c: c.wall_s),
        "exponent_driver": exponent(lambda c: c.driver_s),
        "exponent_memory": exponent(lambda c: c.driver_bytes / 2**20),
        "dearer": by_stage(dearer),
    }


def _used_gib() -> float:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    found = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return (found["MemTotal"] - found["MemAvailable"]) / 2**20


def main() -> None:
    """Run the benchmark from the command line."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--nodes", type=int, help="nodes of the cluster")
    options.add_argument(
        "--stages", nargs="+", choices=STAGES, default=list(STAGES), help="features follow mine"
    )
    given = options.parse_args()
    size = sizes(quick=given.quick, smoke=given.smoke)
    around, before = machine("metarepair", "ray"), _used_gib()
    with tempfile.TemporaryDirectory() as folder, cluster_of(given.nodes or size.nodes):
        taken = _used_gib() - before
        costs = measure(size, Path(folder), given.stages)
    figures = figures_of(costs) | {"nodes": float(given.nodes or size.nodes), "cluster_gib": taken}
    around |= {"actors": size.actors, "images of a shard": IMAGES_OF_SHARD}
    times = Times({f"{stage} {c.items}": [c.wall_s] for stage, found in costs.items() for c in found})
    publish(figures, meaning=MEANING, around=around, times=times, path=given.json, smoke=given.smoke)


if __name__ == "__main__":
    main()

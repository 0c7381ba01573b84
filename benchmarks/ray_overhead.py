"""Measure what Ray costs: the same meta-training in a plain process and on Ray Train.

    plain     a process without Ray: metarepair.runs.context.LocalContext
    1 worker  Ray Train, one worker of one thread
    2 workers Ray Train, two workers of one thread each
    2 plain   two independent processes without Ray at the same time: the most that two cores of this machine can give

Net: the shipped ResNet-8 on the shipped sample. Task: 2 × 10 support and 20 query images of 32 px, K = 3 inner steps,
exact second order, float32; four tasks per episode, so two workers have two each. The loop is
metarepair.meta_training.meta_train with its rounds, checkpoints, reports and validation. Seconds per episode are
measured from the end of the first episode to the end of the last; startup time is a separate figure.
Command: python -m benchmarks.ray_overhead [--quick] [--json FILE]
"""

from __future__ import annotations

import io
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Figure, Times, machine, parser, publish
from benchmarks.ray_here import folder_for_ray
from distributed.on_ray.cluster import connected
from distributed.on_ray.context import RayContext
from distributed.stages.executor import executor_for
from distributed.stages.train import fit
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.meta_training.meta_train import meta_train
from metarepair.runs.context import Context, LocalContext
from metarepair.runs.layout import Run
from metarepair.stages.pipeline import Pipeline
from metarepair.stages.train import build_trainer, inputs_of
from tasks.storage.paths import place

TARGET = "gaussian_noise"
WAYS = {"plain": 0, "1 worker": 1, "2 workers": 2, "2 plain": 0}
FIRST_LINE, EPISODES = "first_line.json", "episodes.json"
MEANING = {
    "overhead_1_worker": "seconds per episode on one Ray worker over the plain process's (the goal is at most 1.02)",
    "efficiency_2_workers": "one worker's seconds over twice those of two (the goal is at least 0.95)",
    "efficiency_2_tasks": "the same for the median episode: without one rank's work between rounds (validation)",
    "ceiling_2_plain": "one plain process's seconds over those of two at once: an upper bound for two workers",
    "share_of_ceiling": "efficiency_2_tasks over ceiling_2_plain",
    "startup_s": "seconds from fit() to the loop's first line, one worker",
    "startup_2_s": "the same with two workers",
    "tune_s_per_trial": "extra seconds of a trial that does nothing, on Ray Tune instead of a plain call",
    "tune_start_s": "seconds of a sweep of one such trial",
    "episode_s": "mean seconds per episode, by way",
    "median_episode_s": "seconds of the median episode, by way",
    "noise": "largest over smallest of the plain process's rounds − 1: differences this small may be noise",
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    episodes: int
    rounds: int
    trials: int


def sizes(*, quick: bool, smoke: bool) -> Sizes:
    """Return the sizes. --quick uses the same sizes with fewer rounds."""
    if smoke:
        return Sizes(episodes=3, rounds=1, trials=2)
    return Sizes(episodes=21, rounds=2 if quick else 7, trials=10 if quick else 30)


def config_of(storage: Path, size: Sizes) -> Config:
    """Return the configuration of the run that is trained in all ways."""
    return parse_config(
        {
            "name": "overhead",
            "storage_path": str(storage),
            "device": "cpu",
            "targets": [TARGET],
            "data": {"max_train_images": 500, "max_test_images": 500},
            "mining": {"experiences": ["shot_noise", "speckle_noise"], "severities": [3, 5], "collect": 100},
            "features": {"extractor": "deployed"},
            "task": {"shots": 2, "query_size": 20},
            "inner": {"steps": 3},
            "train": {
                "episodes": size.episodes,
                "round_episodes": 10,
                "tasks": 4,
                "memory": "graph",
                "threads": 1,
            },
        }
    )


def timed_training(config: Config, folder: str, context: Context) -> None:
    """Run MetaRepair's own loop. Rank 0 writes files with the time it started and the times each episode ended."""
    if context.rank == 0:
        _leave(folder, FIRST_LINE, [time.time()])
    run = Run(place(config.storage_path) / config.name)
    trainer, ends = build_trainer(inputs_of(run, config, TARGET), config, context), []
    run_episode = trainer.run_episode

    def timed() -> dict[str, float]:
        found = run_episode()
        ends.append(time.perf_counter())
        return found

    trainer.run_episode = timed  # type: ignore[method-assign]  # only adds reading the clock
    meta_train(trainer)
    if context.rank == 0:
        _leave(folder, EPISODES, ends)


def _leave(folder: str, name: str, times: Sequence[float]) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / name).write_text(json.dumps(list(times)), encoding="utf-8")


def _left(folder: Path, name: str) -> list[float]:
    found: list[float] = json.loads((folder / name).read_text(encoding="utf-8"))
    return found


def ray_loop(settings: dict[str, Any]) -> None:
    """Run one rank, as in distributed.stages.train, and time it."""
    config = parse_config(settings["config"])
    context = RayContext(folder=place(settings["folder"]), kept=config.train.kept_checkpoints)
    timed_training(config, settings["folder"], context)


def plain_loop(config: Config, folder: str) -> None:
    """Run the same in this process."""
    timed_training(config, folder, LocalContext(folder=place(folder), device=torch.device("cpu")))


@dataclass(frozen=True)
class Training:
    """Seconds of one training: per episode on average, of the median episode, and until the loop started."""

    episode_s: float
    median_s: float
    begun_s: float


def train(way: str, config: Config, folder: Path) -> Training:
    """Time one training; of two at once, the first."""
    started = time.time()
    if WAYS[way]:
        fit(ray_loop, {}, config.model_copy(update={"workers": WAYS[way]}), folder)
    else:
        places = [folder, folder.with_name(folder.name + "-beside")][: 2 if way == "2 plain" else 1]
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            for done in [pool.submit(plain_loop, config, str(place)) for place in places]:
                done.result()
    ends = _left(folder, EPISODES)
    return Training(
        episode_s=(ends[-1] - ends[0]) / (len(ends) - 1),
        median_s=statistics.median(b - a for a, b in pairwise(ends)),
        begun_s=_left(folder, FIRST_LINE)[0] - started,
    )


def trivial(settings: Mapping[str, float]) -> dict[str, float]:
    """Run a trial that does nothing."""
    return {"objective": settings["x"] ** 2}


def trial(settings: dict[str, float]) -> None:
    """Run the same as a trial of Ray Tune."""
    from ray import tune

    tune.report(trivial(settings))


def sweep(trials: int, at_once: int, name: str, folder: Path) -> float:
    """Return the seconds of a sweep of trials that do nothing, in reused processes, as in MetaRepair's search."""
    from ray import tune

    tuner = tune.Tuner(
        trial,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="min",
            num_samples=trials,
            max_concurrent_trials=at_once,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name=name, storage_path=str(folder), verbose=0),
    )
    started = time.perf_counter()
    with redirect_stdout(io.StringIO()):  # Tune prints where its logs are even at verbose=0
        tuner.fit()
    return time.perf_counter() - started


def tune_seconds(count: int, folder: Path) -> tuple[float, float]:
    """Return the seconds of one more trial and of a sweep of one; two run at a time, after a warm-up sweep."""
    _, one, more = (sweep(n, 2, f"sweep-{i}", folder) for i, n in enumerate((1, 1, 1 + count)))
    started = time.perf_counter()
    for number in range(count):
        trivial({"x": float(number)})
    plain = time.perf_counter() - started
    return (more - one - plain) / count, one


def measure(size: Sizes, folder: Path) -> tuple[dict[str, Figure], Times]:
    """Measure all ways in turn, then Tune's trials."""
    config = config_of(folder, size)
    pipeline = Pipeline(config, executor_for)
    pipeline.mine()
    pipeline.score()
    found: dict[str, list[Training]] = {way: [] for way in WAYS}
    for number in range(size.rounds):
        for way in WAYS:
            one = train(way, config, folder / f"{way.replace(' ', '-')}-{number}")
            found[way].append(one)
            print(
                f"  round {number + 1} of {size.rounds}  {way:10s} {one.episode_s:.3f} s per episode, "
                f"median {one.median_s:.3f} s, started after {one.begun_s:.1f} s",
                flush=True,
            )
    return figures_of(found, *tune_seconds(size.trials, folder)), _times(found, "episode_s")


def _times(found: Mapping[str, Sequence[Training]], what: str) -> Times:
    return Times({way: [getattr(one, what) for one in several] for way, several in found.items()})


def figures_of(found: Mapping[str, Sequence[Training]], per_trial: float, start: float) -> dict[str, Figure]:
    """Compute the figures. Ratios compare ways that ran in the same round."""
    times, tasks, begun = (_times(found, what) for what in ("episode_s", "median_s", "begun_s"))
    plain = times.rounds_s["plain"]
    return {
        "overhead_1_worker": times.ratio("1 worker", "plain"),
        "efficiency_2_workers": times.ratio("1 worker", "2 workers") / 2,
        "efficiency_2_tasks": tasks.ratio("1 worker", "2 workers") / 2,
        "ceiling_2_plain": tasks.ratio("plain", "2 plain"),
        "share_of_ceiling": tasks.ratio("1 worker", "2 workers") / 2 / tasks.ratio("plain", "2 plain"),
        "startup_s": begun.median("1 worker"),
        "startup_2_s": begun.median("2 workers"),
        "tune_s_per_trial": per_trial,
        "tune_start_s": start,
        "noise": max(plain) / min(plain) - 1,
        "episode_s": {way: times.median(way) for way in WAYS},
        "median_episode_s": {way: tasks.median(way) for way in WAYS},
    }


def main() -> None:
    """Run the benchmark from the command line."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, help="how often each way is timed")
    given = options.parse_args()
    size = sizes(quick=given.quick, smoke=given.smoke)
    if given.rounds:
        size = replace(size, rounds=given.rounds)
    around = machine("metarepair", "torch", "ray") | {
        "net": "resnet8_cifar",
        "tasks": 4,
        "batch": "20 + 20",
        "steps": 3,
        "episodes": size.episodes,
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(folder_for_ray())
        stack.enter_context(connected(config_of(folder, size).model_copy(update={"workers": 2}), None))
        figures, times = measure(size, folder)
    publish(figures, meaning=MEANING, around=around, times=times, path=given.json, smoke=given.smoke)


if __name__ == "__main__":
    main()

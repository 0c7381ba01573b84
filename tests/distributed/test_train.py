"""Meta-training on a real local Ray gives the same weights for any number of workers and after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from distributed.stages.executor import executor_for
from metarepair.config.run import Config
from metarepair.runs.checkpoint import newest_checkpoint, read_state
from metarepair.runs.layout import Run
from metarepair.stages.pipeline import Pipeline
from tasks.errors import DataError
from waiting import wait_until

pytestmark = pytest.mark.distributed

StorageOf = Callable[[str], Path]
Tiny = Callable[..., Config]


def trained(config: Config) -> dict[str, torch.Tensor]:
    """Run the training stage; return θ_meta and its buffers."""
    pipeline = Pipeline(config, executor_for)
    pipeline.train()
    return load_file(pipeline.run.meta("gaussian_noise") / "start.safetensors")


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("episodes", "workers"), [(10, (2,)), pytest.param(50, (2, 4), marks=pytest.mark.soak)]
)
def test_any_number_of_workers_trains_the_same_model(
    cluster: None, storage_of: StorageOf, tiny: Tiny, episodes: int, workers: tuple[int, ...]
) -> None:
    precise = {"precision": "float64", "episodes": episodes, "round_episodes": episodes // 2}
    half = {"cpus_per_worker": 0.5}  # four workers on two CPUs
    none, *others = (
        trained(tiny(storage_of(f"w{n}"), workers=n, train=precise, ray=half)) for n in (0, *workers)
    )
    start = {k: v.double() for k, v in load_start(tiny(storage_of("start"))).items()}
    assert difference(none, start) > 1e-3  # it did train
    assert all(difference(none, other) < 1e-9 for other in others)


@pytest.mark.soak
def test_training_with_too_few_cpus_and_tasks_uses_fewer_workers(
    cluster: None, storage_of: StorageOf, tiny: Tiny
) -> None:
    train = {"episodes": 6, "round_episodes": 3, "tasks": 1}
    one = trained(tiny(storage_of("one"), workers=0, train=train))
    # Three CPUs are requested and two exist. Training is elastic: two workers start, one of them without a task.
    elastic = tiny(storage_of("elastic"), workers=3, train=train, ray={"min_workers": 1})
    assert difference(one, trained(elastic)) == 0.0


@pytest.mark.soak
def test_a_workers_data_error_keeps_its_type_after_one_restart(
    cluster: None, storage_of: StorageOf, tiny: Tiny, tmp_path: Path
) -> None:
    storage = storage_of("damaged")
    config = tiny(storage, workers=1)
    collect = Run(storage / "tiny").experience("snow") / "collect.arrow"
    size, content = collect.stat().st_size, b"no Arrow file"
    collect.write_bytes(content + bytes(size - len(content)))
    with pytest.raises(DataError, match=r"experiences/snow/collect.arrow"):
        Pipeline(config, executor_for).train()


def load_start(config: Config) -> dict[str, torch.Tensor]:
    return dict(Pipeline(config, executor_for).here.deployed.module.state_dict())


def command(config: Config, folder: Path) -> list[str]:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return [sys.executable, "-m", "metarepair", "train", "--config", str(path)]


def killed_after(episodes: int, config: Config, folder: Path) -> None:
    """Start a training, kill its process group once a checkpoint has `episodes` episodes, and wait for its end."""
    environment = {**os.environ, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    said = folder / "killed.log"
    with said.open("wb") as log:
        process = subprocess.Popen(
            command(config, folder),
            env=environment,
            start_new_session=True,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    meta = Run(Path(config.storage_path) / config.name).meta("gaussian_noise")

    def reached() -> bool:
        newest = newest_checkpoint(meta) if meta.exists() else None
        state = read_state(newest) if newest is not None else None
        return state is not None and state["episode"] >= episodes

    try:
        wait_until(reached, f"a checkpoint of {episodes} episodes", process=process, output=said)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (meta / "manifest.json").exists()


@pytest.mark.slow
def test_without_ray_a_killed_run_resumes_and_ends_with_identical_weights(
    storage_of: StorageOf, tiny: Tiny, tmp_path: Path
) -> None:
    train = {"episodes": 16, "round_episodes": 2}
    whole = trained(tiny(storage_of("whole"), train=train))
    config = tiny(storage_of("killed"), train=train)
    killed_after(4, config, tmp_path)
    again = trained(config)
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    history = read_history(Path(config.storage_path))
    assert [line["episode"] for line in history] == list(range(1, 17))


def read_history(storage: Path) -> list[dict[str, float]]:
    path = Run(storage / "tiny").meta("gaussian_noise") / "metrics.json"
    history: list[dict[str, float]] = json.loads(path.read_text())
    return history

"""Meta-training on a real local Ray: the number of workers and a killed run do not show in the weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from distributed.pipeline import Pipeline
from metarepair.checkpoint import newest_checkpoint, read_state
from metarepair.config import Config
from metarepair.layout import Run

pytestmark = pytest.mark.distributed

StorageOf = Callable[[str], Path]
Tiny = Callable[..., Config]


def trained(config: Config) -> dict[str, torch.Tensor]:
    """θ_meta and its buffers after the training stage."""
    pipeline = Pipeline(config, lambda _: None)
    pipeline.train()
    return load_file(pipeline.run.meta("gaussian_noise") / "model.safetensors")


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


@pytest.mark.slow
def test_no_worker_one_and_two_workers_train_the_same_model(
    cluster: None, storage_of: StorageOf, tiny: Tiny
) -> None:
    precise = {"precision": "float64"}
    models = [trained(tiny(storage_of(f"w{n}"), workers=n, train=precise)) for n in (0, 1, 2)]
    start = {k: v.double() for k, v in load_start(tiny(storage_of("start"))).items()}
    assert difference(models[0], start) > 1e-3  # it did train
    assert difference(models[0], models[1]) < 1e-9
    assert difference(models[1], models[2]) < 1e-9


@pytest.mark.slow
def test_in_float32_two_workers_cost_no_more_than_rounding(
    cluster: None, storage_of: StorageOf, tiny: Tiny
) -> None:
    one, two = (trained(tiny(storage_of(f"w{n}"), workers=n)) for n in (1, 2))
    assert difference(one, two) == 0.0  # four tasks are summed in the same binary tree on one and two workers


def load_start(config: Config) -> dict[str, torch.Tensor]:
    return dict(Pipeline(config, lambda _: None).here.deployed.module.state_dict())


def command(config: Config, folder: Path) -> list[str]:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return [sys.executable, "-m", "metarepair", "train", "--config", str(path)]


def killed_after(episodes: int, config: Config, folder: Path) -> None:
    """Starts a training, kills its driver once a checkpoint of `episodes` is there, and waits for the workers."""
    environment = {**os.environ, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        command(config, folder),
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    meta = Run(Path(config.storage_path) / config.name).meta("gaussian_noise")
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            newest = newest_checkpoint(meta) if meta.exists() else None
            state = read_state(newest) if newest is not None else None
            if state is not None and state["episode"] >= episodes:
                break
            assert process.poll() is None, "the training ended before it could be killed"
            time.sleep(0.05)
        else:
            pytest.fail("no checkpoint came")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (meta / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_run_killed_in_the_middle_ends_with_the_very_same_weights(
    cluster: None, storage_of: StorageOf, tiny: Tiny, tmp_path: Path, workers: int
) -> None:
    train = {"episodes": 40, "round_episodes": 2}
    whole = trained(tiny(storage_of("whole"), workers=workers, train=train))
    config = tiny(storage_of("killed"), workers=workers, train=train)
    killed_after(4, config, tmp_path)
    again = trained(config)
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    history = read_history(Path(config.storage_path))
    assert [line["episode"] for line in history] == list(range(1, 41))


def read_history(storage: Path) -> list[dict[str, float]]:
    path = Run(storage / "tiny").meta("gaussian_noise") / "metrics.json"
    history: list[dict[str, float]] = json.loads(path.read_text())
    return history

"""Provide a small local Ray cluster for the session, and a mined and scored run to copy."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed.stages.executor import executor_for
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.stages.pipeline import Pipeline

# By default Ray starts its workers with low priority, and the tests would wait longer for them.
os.environ.setdefault("RAY_worker_niceness", "0")


def tiny(storage: Path, **changes: Any) -> Config:
    """Return a configuration whose stages take seconds; `changes` are sections to merge in."""
    values: dict[str, Any] = {
        "name": "tiny",
        "storage_path": str(storage),
        "device": "cpu",
        "targets": ["gaussian_noise"],
        "data": {"max_train_images": 200, "max_test_images": 200},
        "mining": {
            "experiences": ["shot_noise", "speckle_noise", "snow"],
            "severities": [3, 5],
            "collect": 30,
            "shard_images": 50,
        },
        "features": {"extractor": "deployed"},
        "task": {"shots": 1, "query_size": 10},
        "inner": {"steps": 2},
        "train": {"episodes": 20, "round_episodes": 5, "tasks": 4},
        # Without the methods that start from joint training, which takes minutes.
        "repair": {"episodes": 1, "tasks": 2, "methods": ["metarepair", "finetune", "bn_adapt", "none"]},
        "evaluate": {"others": ["fog"], "others_images": 20},
    }
    for key, change in changes.items():
        values[key] = {**values[key], **change} if isinstance(change, dict) and key in values else change
    return parse_config(values)


@pytest.fixture(scope="session", name="tiny")
def tiny_fixture() -> Callable[..., Config]:
    """The function `tiny(storage, **changes)`, as a fixture."""
    return tiny


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray cluster with two CPUs and its own temporary folder. Its path is short, for socket names."""
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # as our own connection does
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or Ray writes one to the home folder
    import ray

    folder = tempfile.mkdtemp(prefix="mr", dir="/tmp")
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder, logging_level="error"
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is mined and scored in this process, without Ray."""
    storage = tmp_path_factory.mktemp("scored")
    pipeline = Pipeline(tiny(storage), executor_for)
    pipeline.mine()
    pipeline.score()
    return storage


@pytest.fixture
def storage_of(scored: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A function that copies the scored run to a storage path with the given name."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(scored, tmp_path / name))

    return copy

"""Provide the settings of tiny repair kits and of runs with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

KIT: dict[str, Any] = {
    "device": "cpu",
    "data": {"name": "cifar10_sample", "max_train_images": 300, "max_test_images": 200},
    "mining": {
        "experiences": ["shot_noise", "snow"],
        "severities": [3, 5],
        "collect": 20,
        "shard_images": 100,
        "images": 100,
    },
    "task": {"shots": 1, "query_size": 10, "clean_support": 5},
    "inner": {"steps": 1},
    "train": {"episodes": 2, "round_episodes": 1, "tasks": 1, "threads": 1},
    "joint": {"rounds": 2, "round_steps": 2, "batch_size": 16, "groups": 2, "shift": 2},
}
RUN: dict[str, Any] = {
    "name": "withkit",
    "device": "cpu",
    "targets": ["gaussian_noise"],
    "mining": {"severities": [3, 5], "collect": 20, "shard_images": 100},
    "repair": {"episodes": 1, "tasks": 1, "methods": ["none", "joint", "metarepair"]},
    "evaluate": {"others": []},
}


def with_kit(kit: Path | str, storage: Path | str, **changes: Any) -> dict[str, Any]:
    """The settings of a small run with a kit; `changes` replace whole groups."""
    return RUN | {"kit": str(kit), "storage_path": str(storage)} | changes

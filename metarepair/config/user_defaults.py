"""The settings of `fix`, `diagnose` and `kit` whatever data and budget are: made for users, not for the paper's tables.

Wherever a repair uses clean images, these settings hold the accuracy on them: clean images in every support, in every
query and in every choice. Features are those of the user's own model, which need no download.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tasks.corruptions import CORRUPTIONS

TASKS = 4  # of an episode of meta-training and of repair
INNER_STEPS = 3
WALK_EPISODES = 5  # of MetaRepair's repair
RATES = (0.01, 0.03)  # that MetaRepair's repair tries
MINED = 1000  # clean images from which each experience is mined, in all severities
MOST_CORES = 8  # that one process uses well


def user_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `given`, settings without any of a method or a training, completed by these defaults.

    With `kit`, those of its trainings are left to the kit.
    """
    threads = 1 if given.get("workers") else min(usable_cores(), MOST_CORES)
    common = {
        **given,
        "mining": {"collect": 1000, "at_most": True},
        "train": {"threads": threads},
        "repair": {
            "episodes": WALK_EPISODES,
            "tasks": TASKS,
            "rates": list(RATES),
            "clean_weight": 0.5,
            "methods": ["sgd", "bn_adapt", "none"],
        },
        "evaluate": {"others": []},
    }
    return common if given.get("kit") is not None else _with_trainings(common)


def _with_trainings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of meta-training, and of the experiences that trainings learn from."""
    query = {"failures": 0.25, "environment": 0.25, "clean": 0.5}
    return {
        **settings,
        "mining": {"experiences": list(CORRUPTIONS), "images": MINED, **settings["mining"]},
        "features": {"extractor": "deployed"},
        "task": {"shots": 5, "query_size": 50, "clean_support": 50},
        "inner": {"steps": INNER_STEPS, "rate": 0.03, "batch_norm_momentum": 0.5},
        "train": {"start": "joint", "tasks": TASKS, "query": query, **settings["train"]},
    }


def usable_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

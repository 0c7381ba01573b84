"""Write a plan as the settings of a run: `fix.yaml`, from which `metarepair run` makes the same run again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from metarepair.config.photographs import NAME
from metarepair.config.run import Config
from metarepair.data.selecting_images import MOST, clean_that_select
from metarepair.data.workspace import Surroundings
from metarepair.fixing.plan import Counts, Plan
from tasks.environments import Environment
from tasks.records import Ints
from tasks.splits import JUDGE, LEARN, SELECT


def planned_settings(settings: Mapping[str, Any], plan: Plan, *, threads: int) -> dict[str, Any]:
    """Return `settings` with the counts of a plan, for trainings with so many threads."""
    tuned = {"epochs": plan.sgd_epochs}
    changed: dict[str, dict[str, Any]] = {
        "repair": {"methods": list(plan.methods)},
        "methods": {name: tuned for name in plan.methods if name in ("sgd", "joint_sgd")},
    }
    if plan.joint_rounds:
        changed["joint"] = {"rounds": plan.joint_rounds, "round_steps": plan.round_steps}
    changed["train"] = {"threads": threads}
    if plan.episodes and not settings.get("refine"):
        changed["train"] |= {"episodes": plan.episodes, "round_episodes": plan.round_episodes}
    sections = {key: {**settings.get(key, {}), **values} for key, values in changed.items()}
    return {**settings, **sections}


def count(config: Config, here: Surroundings) -> Counts:
    """Count what there is. The photographs are in the run's storage already; those that judge are not opened."""
    source = here.environment("test", NAME)
    learned_N, selecting_N = (np.flatnonzero(source.parts_N == part) for part in (LEARN, SELECT))
    learned = len(here.split("train").labels_N)
    return Counts(
        photographs=len(source.parts_N),
        failures=len(learned_N) - right_of(here, source, learned_N),
        selecting=len(selecting_N),
        judging=int((source.parts_N == JUDGE).sum()),
        clean_learn=learned,
        clean_select=len(here.clean().held_out),
        choosing=min(MOST, len(selecting_N)) + min(MOST, len(clean_that_select(config, here)[1])),
        clean_judge=len(here.split("test").labels_N),
        experiences=len(config.mining.experiences),
        severities=len(config.mining.severities),
        mined=min(config.mining.images or learned, learned),
        collected=config.mining.collect,
    )


def right_of(here: Surroundings, source: Environment, rows_N: Ints) -> int:
    """How many of these photographs the deployed model gets right."""
    severity, right = source.severities[0], 0
    for rows_B in np.array_split(rows_N, range(500, len(rows_N), 500)) if len(rows_N) else ():
        classes_B = here.deployed.logits(source.images(rows_B, severity)).argmax(1).numpy()
        right += int((classes_B == source.labels_N[rows_B]).sum())
    return right

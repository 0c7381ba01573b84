"""Repair without clean images: photographs that the deployed model gets right stand in for them.

They hold the accuracy that there is in the photographs' own setting, which is better than nothing; accuracy elsewhere
is neither held nor measured. The failures are the environment.
"""

# N images

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metarepair.config.photographs import NAME
from metarepair.config.run import Config
from metarepair.data.save_images import save_images
from metarepair.data.workspace import Surroundings, load_surroundings
from metarepair.runs.layout import Run
from tasks.datasets import Split, dataset_info
from tasks.datasets.base import groups_of
from tasks.errors import ConfigError, DataError
from tasks.records import Ints, Pixels
from tasks.storage.remote import RemotePath

logger = logging.getLogger(__name__)
FOLDER, RIGHT, WRONG = "without_clean", "right.parquet", "wrong.parquet"
LEAST = 40  # photographs that the model gets right: some of them learn, some select, some judge
BATCH = 500
SPLITS: tuple[Split, ...] = ("train", "select", "test")


def stand_in(run: Run, config: Config, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` with the right photographs as clean images, and the wrong ones as the environment.

    config: settings whose data set is all photographs. They are classified and written into the run once. Raises
    DataError if the model gets too few of them right.
    """
    if isinstance(run.root, RemotePath):
        raise ConfigError(
            f"--clean is missing, and the photographs that would stand in cannot be written to {run.root}. Give clean "
            "images, or a local --out."
        )
    folder = run.root / FOLDER
    if not all((folder / name).is_file() for name in (RIGHT, WRONG)):
        _divide(load_surroundings(config), folder)
    logger.warning(
        "There are no clean images. Photographs that the model gets right stand in for them: what the repair costs on "
        "other images is neither held nor measured. Give --clean to know it."
    )
    given = dict(settings["environments"][NAME])
    environment = {"images": str(folder / WRONG)} | {k: v for k, v in given.items() if k == "holdout"}
    data = {**settings["data"], "root": str(folder / RIGHT), "classes": list(_classes(config))}
    return {**settings, "data": data, "environments": {NAME: environment}}


def _divide(here: Surroundings, folder: Path) -> None:
    """Write the right and the wrong photographs, each with the group that it belongs to."""
    images, labels, right, groups = [], [], [], []
    for split in SPLITS:
        data = here.split(split)
        images.append(data.images_NHWC[:])
        labels.append(data.labels_N)
        groups.append(groups_of(data))
        right.append(_predicted(here, images[-1]) == data.labels_N)
    images_NHWC, labels_N = np.concatenate(images), np.concatenate(labels)
    right_N, groups_N = np.concatenate(right), np.concatenate(groups)
    if right_N.sum() < LEAST or right_N.all():
        raise DataError(
            f"The model gets {right_N.sum()} of {len(right_N)} photographs right. Without clean images, {LEAST} right "
            "ones or more stand in for them, and at least one must be wrong. Give --clean, or more photographs."
        )
    for name, rows_N in ((WRONG, ~right_N), (RIGHT, right_N)):
        save_images(
            (images_NHWC[rows_N], labels_N[rows_N]),
            folder / name,
            groups=groups_N[rows_N].astype(str).tolist(),
        )
    logger.info(f"of {len(right_N)} photographs, the model gets {right_N.sum()} right")


def _predicted(here: Surroundings, images_NHWC: Pixels) -> Ints:
    parts = [
        here.deployed.logits(images_NHWC[start : start + BATCH]).argmax(1).numpy()
        for start in range(0, len(images_NHWC), BATCH)
    ]
    return np.concatenate(parts)


def _classes(config: Config) -> tuple[str, ...]:
    return dataset_info(config.data.source()).classes

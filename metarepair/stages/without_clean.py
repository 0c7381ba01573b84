"""Repair without clean images: photographs that the deployed model gets right stand in for them.

They hold the accuracy that there is in the photographs' own setting, which is better than nothing; accuracy elsewhere
is neither held nor measured. The failures are the environment.

    without_clean/
        right.parquet     what stands in for clean images
        wrong.parquet     the environment
        made_from.json    digests of the photographs and of the deployed weights; written last

All photographs of a group, right and wrong, are for the same: to learn from, to select by or to judge by. Otherwise a
repair would be judged by the wrong photographs of a day whose right ones it learned from.
"""

# N images

from __future__ import annotations

import json
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
from tasks.datasets import dataset_info
from tasks.datasets.base import groups_of
from tasks.datasets.unsplit import PARTS
from tasks.errors import ConfigError, DataError, StageError
from tasks.splits.parts import JUDGE, LEARN, SELECT, Parts
from tasks.storage.manifest import discard
from tasks.storage.paths import Place, read_json, remove_tree, write_text
from tasks.storage.remote import RemotePath

logger = logging.getLogger(__name__)
FOLDER, RIGHT, WRONG = "without_clean", "right.parquet", "wrong.parquet"
MADE_FROM = "made_from.json"
LEAST = 40  # photographs that the model gets right: some of them learn, some select, some judge


def stand_in(run: Run, config: Config, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` with the right photographs as clean images, and the wrong ones as the environment.

    config: settings whose data set is all photographs. They are classified and written into the run once, and
    again if they or the weights are others. Raises DataError if the model gets too few of them right.
    """
    if isinstance(run.root, RemotePath):
        raise ConfigError(
            f"--clean is missing, and the photographs that would stand in cannot be written to {run.root}. Give clean "
            "images, or a local --out."
        )
    folder = run.root / FOLDER
    here = load_surroundings(config)
    if _made_from(folder) != here.inputs():
        _discard(run)
        _divide(here, folder, held="holdout" in settings["environments"][NAME])
        write_text(folder / MADE_FROM, json.dumps(here.inputs(), indent=1) + "\n")
    logger.warning(
        "There are no clean images. Photographs that the model gets right stand in for them: what the repair costs on "
        "other images is neither held nor measured. Give --clean to know it."
    )
    given = dict(settings["environments"][NAME])
    environment = {"images": str(folder / WRONG)} | {k: v for k, v in given.items() if k == "holdout"}
    data = {**settings["data"], "root": str(folder / RIGHT), "classes": list(_classes(config))}
    return {**settings, "data": data, "environments": {NAME: environment}}


def check_stand_in(run: Run, config: Config) -> None:
    """Raise StageError if a plan was made with other photographs or other weights than these settings name."""
    now, held = load_surroundings(config).inputs(), _made_from(run.root / FOLDER)
    if held == now:
        return
    weights = held is not None and held.get("deployed") != now["deployed"]
    what = "the deployed weights have" if weights else "the photographs have"
    if held is None:
        what = f"{run.root / FOLDER / MADE_FROM} is missing or damaged, and the photographs may have"
    raise StageError(
        f"{run.root} holds a repair that was planned without --clean, and {what} changed since. Give another --out, or "
        "--restart to start over."
    )


def _made_from(folder: Place) -> dict[str, str] | None:
    """The digests that the files were made from; None if they are not finished."""
    try:
        made_from: dict[str, str] = read_json(folder / MADE_FROM)
    except (OSError, ValueError):
        return None
    return made_from if all((folder / name).is_file() for name in (RIGHT, WRONG)) else None


def _discard(run: Run) -> None:
    """Delete unfinished files and those of other photographs, and what was read from them."""
    (run.root / FOLDER / MADE_FROM).unlink(missing_ok=True)
    remove_tree(run.root / FOLDER)
    discard(run.environment(NAME))


def _divide(here: Surroundings, folder: Path, *, held: bool) -> None:
    """Write the right and the wrong photographs, each with its group and with what its group is for.

    held: whether the user has a holdout; then wrong photographs of groups that judge are left out.
    """
    images, labels, right, groups, parts = [], [], [], [], []
    for split, part in PARTS.items():
        data = here.split(split)
        images.append(data.images_NHWC[:])
        labels.append(data.labels_N)
        groups.append(groups_of(data))
        right.append(here.deployed.logits(images[-1]).argmax(1).numpy() == data.labels_N)
        parts.append(np.full(len(data.labels_N), part, np.int8))
    images_NHWC, labels_N = np.concatenate(images), np.concatenate(labels)
    right_N, groups_N, parts_N = np.concatenate(right), np.concatenate(groups), np.concatenate(parts)
    if right_N.sum() < LEAST or right_N.all():
        raise DataError(
            f"The model gets {right_N.sum()} of {len(right_N)} photographs right. Without clean images, {LEAST} right "
            "ones or more stand in for them, and at least one must be wrong. Give --clean, or more photographs."
        )
    judges_N = ~right_N & (parts_N == JUDGE)
    if held and judges_N.any():
        logger.info(
            f"{judges_N.sum()} wrong photographs are not used: their groups judge, and so does the holdout"
        )
    for name, rows_N in ((WRONG, ~right_N & ~(judges_N & held)), (RIGHT, right_N)):
        check_parts(parts_N[rows_N], name.removesuffix(".parquet"), held=held and name == WRONG)
        save_images(
            (images_NHWC[rows_N], labels_N[rows_N]),
            folder / name,
            groups=groups_N[rows_N].astype(str).tolist(),
            parts=parts_N[rows_N].tolist(),
        )
    logger.info(f"of {len(right_N)} photographs, the model gets {right_N.sum()} right")


def check_parts(parts_N: Parts, which: str, *, held: bool) -> None:
    """Raise DataError unless some of these photographs learn, some select and, without a holdout, some judge."""
    learn, select, judge = (int((parts_N == part).sum()) for part in (LEARN, SELECT, JUDGE))
    if not learn or not select or not (judge or held):
        raise DataError(
            f"Without clean images, whole groups of photographs are set aside. Of the {which} ones, {learn} are left "
            f"to learn from, {select} to select by and {judge} to judge by, and each needs one. Give --clean, a "
            "--holdout, or more photographs of more groups."
        )


def _classes(config: Config) -> tuple[str, ...]:
    return dataset_info(config.data.source()).classes

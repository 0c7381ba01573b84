"""Repair without clean images: photographs that the deployed model gets right stand in for them.

They hold the accuracy that there is in the photographs' own setting, which is better than nothing; accuracy elsewhere
is neither held nor measured. The failures are the environment.

    without_clean/
        right.parquet     what stands in for clean images
        wrong.parquet     the environment
        judging.parquet   wrong photographs that only judge; only if groups have right and wrong photographs
        made_from.json    digests of the photographs and of the deployed weights; written last

Images of a group, right and wrong, judge together or not at all: otherwise a repair would be judged by the wrong
photographs of a day whose right ones it learned from.
"""

# N images, of which R are right and W are wrong

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
from tasks.datasets import Split, dataset_info
from tasks.datasets.base import groups_of
from tasks.errors import ConfigError, DataError, StageError
from tasks.keys import keyed_generator
from tasks.records import Ints
from tasks.splits.near_duplicates import Hashes, group_images, perceptual_hashes
from tasks.splits.parts import JUDGE, SHARE, Mask, group_numbers, split_clean
from tasks.storage.manifest import discard
from tasks.storage.paths import Place, read_json, remove_tree, write_text
from tasks.storage.remote import RemotePath

logger = logging.getLogger(__name__)
FOLDER, RIGHT, WRONG = "without_clean", "right.parquet", "wrong.parquet"
JUDGING, MADE_FROM = "judging.parquet", "made_from.json"
LEAST = 40  # photographs that the model gets right: some of them learn, some select, some judge
SPLITS: tuple[Split, ...] = ("train", "select", "test")


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
    if (folder / JUDGING).is_file():
        environment["holdout"] = str(folder / JUDGING)
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
    """Write the right and the wrong photographs, each with the group that it belongs to.

    held: whether the user has a holdout; then wrong photographs of groups that judge are left out.
    """
    images, labels, right, groups = [], [], [], []
    for split in SPLITS:
        data = here.split(split)
        images.append(data.images_NHWC[:])
        labels.append(data.labels_N)
        groups.append(groups_of(data))
        right.append(here.deployed.logits(images[-1]).argmax(1).numpy() == data.labels_N)
    images_NHWC, labels_N = np.concatenate(images), np.concatenate(labels)
    right_N, groups_N = np.concatenate(right), np.concatenate(groups)
    if right_N.sum() < LEAST or right_N.all():
        raise DataError(
            f"The model gets {right_N.sum()} of {len(right_N)} photographs right. Without clean images, {LEAST} right "
            "ones or more stand in for them, and at least one must be wrong. Give --clean, or more photographs."
        )
    judges_N = judging_wrong(perceptual_hashes(images_NHWC), groups_N, right_N, fill=not held)
    if held and judges_N.any():
        logger.info(f"{judges_N.sum()} wrong photographs are not used: right ones of their groups judge")
    rows = {WRONG: ~right_N & ~judges_N, RIGHT: right_N} | ({} if held else {JUDGING: judges_N})
    for name, rows_N in rows.items():
        if rows_N.any():
            save_images(
                (images_NHWC[rows_N], labels_N[rows_N]),
                folder / name,
                groups=groups_N[rows_N].astype(str).tolist(),
            )
    logger.info(f"of {len(right_N)} photographs, the model gets {right_N.sum()} right")


def judging_wrong(hashes_N: Hashes, groups_N: Ints, right_N: Mask, *, fill: bool) -> Mask:
    """Choose the wrong photographs that judge where groups have right and wrong ones: a group judges as a whole.

    Args:
        hashes_N: uint64 [N], perceptual hashes.
        groups_N: int64 [N], the number of each photograph's group.
        right_N: bool [N], the photographs that stand in for clean images. A quarter of them judge, by whole groups.
        fill: whether groups without a right photograph judge, too, up to a fifth of the wrong ones.

    Returns:
        bool [N]; none if no group has both kinds, as then any wrong photographs may judge.

    Raises:
        DataError: there are too few groups.
    """
    mixed_N = ~right_N & np.isin(groups_N, groups_N[right_N])
    if not mixed_N.any():
        return mixed_N
    # As the right photographs will be split once they are a data set of their own.
    names = groups_N[right_N].astype(str).tolist()
    parts_R = split_clean(group_images(hashes_N[right_N], group_numbers(names)), name="right photographs")
    judges_N: Mask = mixed_N & np.isin(groups_N, groups_N[right_N][parts_R == JUDGE])
    if fill:
        wanted = max(round(SHARE * int((~right_N).sum())), 1) - int(judges_N.sum())
        judges_N |= _some(groups_N, ~right_N & ~mixed_N, wanted)
    _check_judges(groups_N, judges_N, ~right_N, needed=fill)
    return judges_N


def _some(groups_N: Ints, free_N: Mask, wanted: int) -> Mask:
    """About `wanted` of the free photographs, by whole groups at random, always the same ones."""
    groups, sizes = np.unique(groups_N[free_N], return_counts=True)
    order = keyed_generator("wrong photographs that judge").permutation(len(groups))
    before = np.cumsum(sizes[order]) - sizes[order]  # photographs of the groups that come first
    some_N: Mask = free_N & np.isin(groups_N, groups[order[before < wanted]])
    return some_N


def _check_judges(groups_N: Ints, judges_N: Mask, wrong_N: Mask, *, needed: bool) -> None:
    """Raise DataError unless two groups are left to learn from and to select by, and some judge if that is `needed`."""
    left = len(np.unique(groups_N[wrong_N & ~judges_N]))
    if left < 2 or (needed and not judges_N.any()):
        raise DataError(
            f"Without clean images, {judges_N.sum()} of the {wrong_N.sum()} photographs that the model gets wrong can "
            f"judge, and {left} groups of them are left to learn from and to select by. One must judge, and two groups "
            "be left, as images of one group stay together. Give --clean, a --holdout, or more photographs."
        )


def _classes(config: Config) -> tuple[str, ...]:
    return dataset_info(config.data.source()).classes

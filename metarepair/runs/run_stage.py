"""Run one stage: skip it where it is done, refuse other settings, mark it, make it, finish it by its manifest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.storage.manifest import Manifest, begin, check_done, check_whole, write_manifest
from tasks.storage.paths import Place
from tasks.storage.stages import Stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a stage has written: its files by name, how many rows of each kind, and facts that readers show."""

    files: Sequence[str]
    rows: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def run_stage(
    stage: Stage,
    folder: Place,
    make: Callable[[], Made],
    *,
    names: Sequence[str] = (),
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> Manifest:
    """The manifest of the stage in `folder`, made by `make` where it is not done with these settings and inputs.

    Args:
        stage: its entry in the table.
        folder: where it lies.
        make: writes the files of an unfinished stage, or the rest of them.
        names: what it is of: a target, a method …, as `Stage.title` takes them.
        config: the settings that its result depends on, as plain values.
        inputs: digests of all that it reads.

    Raises:
        StageError: the folder holds the stage, finished or not, with other settings or inputs.
        DataError: a file of it is damaged, and its verb does not make that again.
    """
    assert set(config) <= set(stage.settings), f"{stage.name}: {set(config) - set(stage.settings)}"
    title = stage.title(*names)
    if stage.mends:
        done = check_whole(folder, stage=title, config=config, inputs=inputs)
    else:
        done = check_done(folder, stage=title, config=config, inputs=inputs)
    if done is not None:
        logger.info(f"{title}: done before, see {folder}")
        return done
    if stage.marked:
        begin(folder, config=config, inputs=inputs)
    logger.debug(f"{title}: begins, in {folder}")
    made = make()
    return write_manifest(
        folder,
        stage=title,
        config=config,
        inputs=inputs,
        files=made.files,
        rows=made.rows,
        facts=made.facts,
    )

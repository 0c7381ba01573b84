"""Run one stage: skip it if it is complete, refuse other settings, mark it as started, make it, write its manifest.

Each stage is an entry of the table in `tasks.storage.stages`.
"""

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
class StageOutput:
    """What a stage has written: its files by name, the number of rows of each kind, and facts for readers to show."""

    files: Sequence[str]
    rows: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def run_stage(
    stage: Stage,
    folder: Place,
    make: Callable[[], StageOutput],
    *,
    names: Sequence[str] = (),
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> Manifest:
    """Return the manifest of the stage in `folder`, after `make` if it is not complete with these settings and inputs.

    Args:
        stage: its entry in the table.
        folder: the folder of its files.
        make: writes the files of an unfinished stage, or the rest of them.
        names: the target, method … that it is for, as `Stage.title` takes them.
        config: the settings that its result depends on, as plain values.
        inputs: digests of everything that it reads.

    Raises:
        StageError: the folder holds the stage, finished or not, with other settings or inputs.
        DataError: one of its files is damaged, and its verb does not make that file again.
    """
    assert set(config) <= set(stage.settings), f"{stage.name}: {set(config) - set(stage.settings)}"
    title = stage.title(*names)
    if stage.mends:
        done = check_whole(folder, stage=title, config=config, inputs=inputs)
    else:
        done = check_done(folder, stage=title, config=config, inputs=inputs)
    if done is not None:
        logger.info(f"{title}: already complete, see {folder}")
        return done
    if stage.marked:
        begin(folder, config=config, inputs=inputs)
    logger.debug(f"{title}: starts in {folder}")
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

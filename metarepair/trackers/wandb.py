"""Report to Weights & Biases: in the project WANDB_PROJECT, or else `metarepair`; with WANDB_MODE=offline to files."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Sequence

from metarepair.runs.context import Entry
from metarepair.trackers.tracker import PROJECT, Status, Subject

PATIENCE_S = 60.0  # for the last upload; the files stay, and `wandb sync` uploads them later


class WandbRun:
    """One run of Weights & Biases. A parent and its children are one group, of the parent's id."""

    def __init__(self, subject: Subject, known: str | None, parent: str | None) -> None:
        import wandb

        self.id = known or f"{re.sub(r'[^A-Za-z0-9_.-]', '-', subject.title)[:48]}-{uuid.uuid4().hex[:8]}"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=self.id,
            name=subject.title,
            group=parent or self.id,
            job_type=subject.group,
            config=None if known else dict(subject.params),
            resume="allow",
            reinit="create_new",  # beside other runs of this process
            settings=wandb.Settings(
                silent=True,
                console="off",  # what the command prints stays on this machine, and so does the user's code
                disable_git=True,
                disable_code=True,
                finish_timeout=PATIENCE_S,
            ),
        )

    def log(self, entries: Sequence[Entry]) -> None:
        """Add the scalars."""
        for step, scalars in entries:
            self._run.log(dict(scalars), step=step, commit=True)

    def close(self, status: Status) -> None:
        """Finish the run; it waits for the upload, but not for long."""
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)

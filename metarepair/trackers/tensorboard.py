"""Write metrics as TensorBoard events: on this machine first, then copied to storage as a whole."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from metarepair.runs.context import Entry
from metarepair.trackers.tracker import Status, Subject
from tasks.storage.paths import copy_file


class EventFile:
    """One event file in `tensorboard/` of the subject's folder; TensorBoard joins it with those of earlier commands."""

    id = None

    def __init__(self, subject: Subject, known: str | None, parent: str | None) -> None:  # noqa: ARG002 - it needs no ids
        from tensorboardX.event_file_writer import EventsWriter  # imported only where something is trained

        self._folder, self._group = subject.folder / "tensorboard", subject.group
        self._local = tempfile.TemporaryDirectory(prefix="metarepair")
        # Its name has the second; a command that starts in the same second must not write the same file. SummaryWriter
        # would write in a thread, whose end `flush` does not wait for.
        self._writer = EventsWriter(f"{self._local.name}/events", f".{uuid.uuid4().hex[:8]}")

    def log(self, entries: Sequence[Entry]) -> None:
        """Add the scalars, and copy the file to its folder."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for step, scalars in entries:
            for name, value in scalars.items():
                summary = scalar(f"{self._group}/{name}", value)
                self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()
        for path in Path(self._local.name).iterdir():
            copy_file(path, self._folder / path.name)

    def close(self, status: Status) -> None:  # noqa: ARG002 - it shows none
        """Close the writer and delete the local file."""
        self._writer.close()
        self._local.cleanup()

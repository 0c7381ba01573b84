"""Write a training's metrics as TensorBoard events: on this machine first, then copied to storage as a whole."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.storage.paths import Place, copy_file


class EventLog:
    """One event file in `folder`, with the episodes of this process; TensorBoard joins it with the other files."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder
        self._local: tempfile.TemporaryDirectory[str] | None = None
        self._writer: Any = None

    def add(self, episodes: Sequence[Mapping[str, float]]) -> None:
        """Add the scalars of each episode, at the step given by its `episode`."""
        if self._writer is None:
            from tensorboardX import SummaryWriter  # imported only where something is trained

            self._local = tempfile.TemporaryDirectory(prefix="metarepair")
            self._writer = SummaryWriter(self._local.name, flush_secs=3600)
        for metrics in episodes:
            for name, value in metrics.items():
                if name != "episode":
                    self._writer.add_scalar(f"meta-training/{name}", value, int(metrics["episode"]))
        self._writer.flush()

    def publish(self) -> None:
        """Copy the file to its folder."""
        if self._local is not None:
            for path in Path(self._local.name).iterdir():
                copy_file(path, self.folder / path.name)

    def close(self) -> None:
        """Close the writer and delete the local file."""
        if self._writer is not None and self._local is not None:
            self._writer.close()
            self._local.cleanup()

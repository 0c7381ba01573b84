"""What a tracker is: a program that shows the metrics of a run, such as TensorBoard, MLflow or Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from metarepair.config.run import TrackerName
from metarepair.runs.context import Entry
from tasks.storage.paths import Place

Status = Literal["FINISHED", "FAILED", "KILLED"]

PROJECT = "metarepair"  # of MLflow (experiment) and of Weights & Biases, if their environment names no other
SHOWS_EVENTS: tuple[TrackerName, ...] = ("tensorboard",)
SHOWS_RUNS: tuple[TrackerName, ...] = ("mlflow", "wandb")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a tracker shows as one run: a run of ours, one of its trainings, or a trial.

    title: its name. group: the first part of TensorBoard's tags. folder: of its record and of TensorBoard's files.
    params: its settings, as plain values. trackers: those that show it.
    """

    title: str
    folder: Place
    params: Mapping[str, Any]
    group: str = "run"
    trackers: Sequence[TrackerName] = (*SHOWS_EVENTS, *SHOWS_RUNS)


class Tracker(Protocol):
    """One run of a tracker. Its methods may raise any error of the tracker's package.

    It is built from the subject, from `known`, the id that it had before a resume, and from the id of its parent.
    """

    @property
    def id(self) -> str | None: ...

    def log(self, entries: Sequence[Entry]) -> None:
        """Add scalars, by rising steps; they are stored when this returns."""
        ...

    def close(self, status: Status) -> None:
        """Say how the subject ended, and free everything."""
        ...

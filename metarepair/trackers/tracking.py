"""Report a run and its trainings to trackers: TensorBoard, MLflow, Weights & Biases.

Only the process of the command reports. It reads what a training has left on storage, wherever that runs, so workers
need no tracker, no server and no credentials.

A step is recorded (record.py) before the tracker is given it. So a resumed command continues the same runs, and no step
is there twice; if the command was killed in that moment, one is missing. A tracker that was not there before is given
all steps from the start.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

from metarepair.config.run import Config, TrackerName
from metarepair.config.section import in_yaml
from metarepair.runs.context import Entry
from metarepair.runs.watching import watching
from metarepair.trackers.mlflow import MlflowRun
from metarepair.trackers.record import Record, RecordError
from metarepair.trackers.tensorboard import EventFile
from metarepair.trackers.tracker import SHOWS_RUNS, Status, Subject, Tracker
from metarepair.trackers.wandb import WandbRun
from metarepair.trackers.words import words_of
from tasks.errors import ConfigError, StorageError
from tasks.storage.paths import Place

logger = logging.getLogger(__name__)
EVERY_S = 5.0
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
PROGRAMS: Mapping[TrackerName, Callable[[Subject, str | None, str | None], Tracker]] = {
    "tensorboard": EventFile,
    "mlflow": MlflowRun,
    "wandb": WandbRun,
}
REMEDIES: Mapping[TrackerName, str] = {
    "mlflow": "Set MLFLOW_TRACKING_URI to a server or a database that answers (sqlite:///PATH is a file; "
    "MLflow's file store needs MLFLOW_ALLOW_FILE_STORE=true, too)",
    "wandb": "Log in with `wandb login`, or set WANDB_MODE=offline",
}
UNREADABLE = (OSError, StorageError, ValueError, KeyError, TypeError)  # of a file that is just being replaced
Reader = Callable[[int], Sequence[Entry]]  # the entries after a step


class Tracking:
    """The trackers of a run. A `with` block, also inside another, is the time that the run is shown as running.

    folder: of the run. Raises ConfigError if the package of a tracker is not installed. Entering raises ConfigError if
    a tracker cannot start. One that fails later, or whose record cannot be read or written, is left out from then on,
    with a warning.
    """

    def __init__(self, config: Config, folder: Place) -> None:
        for name in config.trackers:
            require_package(name)
        self._names = list(config.trackers)  # without those that are left out
        params = flat(config.model_dump(mode="json"))
        self._whole = Subject(title=config.name, folder=folder, params=params, trackers=SHOWS_RUNS)
        self._lock = threading.RLock()  # trainings for several targets report from threads of their own
        self._entered = 0  # how many blocks are open
        self._open: dict[tuple[str, TrackerName], Tracker] = {}  # by the folder of the subject
        self._records: dict[str, Record] = {}  # by folder

    def __enter__(self) -> Self:
        with self._lock:
            self._entered += 1
            if self._entered == 1:
                self._start()
        return self

    def _start(self) -> None:
        for name in self._of(self._whole):
            logger.info(f"tracker {name}: connecting")
            try:
                with _little_patience():
                    self._tracker(name, self._whole)
            except RecordError as error:
                self._without_record(name, error)
            except Exception as error:  # of any class: each package has its own
                self._entered = 0
                self._close_all("FAILED")
                raise ConfigError(
                    f"the tracker {name} cannot start ({words_of(error)}). {REMEDIES[name]}, or leave {name} out of "
                    "trackers."
                ) from None  # the error's own text may hold a password

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._entered -= 1
            if self._entered == 0:
                self._close_all(_status(kind))

    @contextmanager
    def following(self, subject: Subject, read: Reader) -> Iterator[None]:
        """Report, while the block runs and once more at its end, the entries that `read` finds after a given step."""
        with self:
            status: Status = "KILLED"
            try:
                with watching(lambda: self.look(subject, read), every_s=EVERY_S):
                    yield
                status = "FINISHED"
            except Exception:
                status = "FAILED"
                raise
            finally:
                if status != "KILLED":  # Ctrl-C waits for no server
                    self.look(subject, read)
                self.close(subject, status)

    def look(self, subject: Subject, read: Reader) -> None:
        """Give every tracker of the subject the entries that it does not have.

        For each tracker, `read` is asked for what comes after the last step of this one: trackers may be at different
        steps, as one may have been added later. A subject without entries is shown nowhere. What cannot be read now,
        the next look may find.
        """

        @cache  # most trackers are at the same step
        def found(after: int) -> Sequence[Entry]:
            try:
                return read(after)
            except UNREADABLE:
                return ()

        with self._lock:
            for name in self._of(subject):
                with self._tolerated(name):
                    self._give(name, subject, found)

    def figures(self, figures: Mapping[str, float], subject: Subject | None = None) -> None:
        """Report the final figures of a subject, the whole run if None, unless they are those of last time."""
        subject = subject or self._whole
        digest = hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()
        with self._lock:
            for name in self._of(subject):
                with self._tolerated(name):
                    if self._record(subject).get(name, "figures") != digest:
                        self._give(name, subject, lambda last: [(last + 1, figures)])
                        self._record(subject).keep(name, figures=digest)

    def close(self, subject: Subject, status: Status) -> None:
        """Close the runs of a subject."""
        with self._lock:
            for name in self._of(subject):
                tracker = self._open.pop((str(subject.folder), name), None)
                if tracker is not None:
                    with self._tolerated(name):
                        tracker.close(status)

    def _close_all(self, status: Status) -> None:
        for key in reversed([*self._open]):  # the whole run, which was opened first, last
            if key in self._open:
                with self._tolerated(key[1]):
                    self._open.pop(key).close(status)

    def _of(self, subject: Subject) -> list[TrackerName]:
        """The trackers that show a subject and are not left out."""
        return [name for name in self._names if name in subject.trackers]

    @contextmanager
    def _tolerated(self, name: TrackerName) -> Iterator[None]:
        """Leave a tracker out, with a warning, if the block raises."""
        try:
            yield
        except RecordError as error:
            self._without_record(name, error)
        except Exception as error:  # of any class: each package has its own
            self._leave_out(name)  # closing its runs might wait for minutes, for a server that is gone
            logger.warning(
                f"The tracker {name} failed ({words_of(error)}). It is left out until this command ends; the run "
                "itself goes on, and its own files are complete."
            )

    def _without_record(self, name: TrackerName, error: RecordError) -> None:
        logger.warning(
            f"{error}. Without this record, {name} might show steps twice. It is left out until this command ends; the "
            "run itself goes on."
        )
        for tracker in self._leave_out(name):
            with suppress(Exception):  # it is left out in any case
                tracker.close("KILLED")

    def _leave_out(self, name: TrackerName) -> list[Tracker]:
        """Give a tracker nothing from now on; return its open runs, those of trainings first."""
        self._names.remove(name)
        return [self._open.pop(key) for key in reversed([*self._open]) if key[1] == name]

    def _give(self, name: TrackerName, subject: Subject, read: Reader) -> None:
        """Give a tracker what `read` finds after the last step that it has."""
        record = self._record(subject)
        if not read(record.step(name)):
            return
        tracker = self._tracker(name, subject)  # if it does not know its run any more, it now has no step
        new = [(step, _finite(scalars)) for step, scalars in read(record.step(name))]
        if new:
            record.keep(name, step=new[-1][0])
            tracker.log(new)

    def _tracker(self, name: TrackerName, subject: Subject) -> Tracker:
        """The tracker's run of a subject, opened if it is not open."""
        key = (str(subject.folder), name)
        if key not in self._open:
            record = self._record(subject)
            known = record.get(name, "id")
            parent = None if subject is self._whole else self._record(self._whole).get(name, "id")
            self._open[key] = tracker = PROGRAMS[name](subject, known, parent)
            if tracker.id != known:
                record.begin(name, tracker.id)
        return self._open[key]

    def _record(self, subject: Subject) -> Record:
        key = str(subject.folder)
        if key not in self._records:
            self._records[key] = Record(subject.folder)
        return self._records[key]


def training_subject(
    config: Config, title: str, folder: Place, settings: Mapping[str, Any], *, group: str
) -> Subject:
    """A training of a run, with the settings that it depends on."""
    return Subject(title=f"{config.name} {title}", folder=folder, params=flat(settings), group=group)


def require_package(name: TrackerName) -> None:
    """Raise ConfigError with the install command if the package of a tracker is missing."""
    if name in SHOWS_RUNS and find_spec(name) is None:
        raise ConfigError(
            f"the tracker {name} needs a package that is not installed: pip install 'metarepair[{name}]'. Or leave "
            f"{name} out of trackers."
        )


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by dotted name; a list as a person would write it in YAML."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{above}{key}.")
        else:
            found[above + key] = in_yaml(value) if isinstance(value, dict | list | tuple) else value
    return found


def _status(kind: type[BaseException] | None) -> Status:
    if kind is None:
        return "FINISHED"
    return "FAILED" if issubclass(kind, Exception) else "KILLED"


def _finite(scalars: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in scalars.items() if math.isfinite(value)}


@contextmanager
def _little_patience() -> Iterator[None]:
    """Let MLflow try a server that does not answer for seconds, not for minutes, unless the user sets how often."""
    if RETRIES in os.environ:
        yield
        return
    os.environ[RETRIES] = "2"
    try:
        yield
    finally:
        os.environ.pop(RETRIES, None)

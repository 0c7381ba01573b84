"""Report a run and its trainings to trackers: TensorBoard, MLflow, Weights & Biases.

Only the process of the command reports. It reads what a training has left on storage, wherever that runs, so workers
need no tracker, no server and no credentials.

    <folder>/trackers.json    the id of a tracker's run, the last step it was given, and a digest of its figures

A step is recorded before the tracker is given it. So a resumed command continues the same runs, and no step is there
twice; if the command was killed in that moment, one is missing. A tracker that was not there before is given all steps
from the start.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

from metarepair.config.run import Config, TrackerName
from metarepair.config.section import in_yaml
from metarepair.runs.context import Entry
from metarepair.runs.watching import watching
from metarepair.trackers.mlflow import MlflowRun
from metarepair.trackers.tensorboard import EventFile
from metarepair.trackers.tracker import SHOWS_RUNS, Status, Subject, Tracker
from metarepair.trackers.wandb import WandbRun
from tasks.errors import ConfigError, StorageError
from tasks.storage.paths import Place, read_json, write_text

logger = logging.getLogger(__name__)
RECORD = "trackers.json"
EVERY_S = 5.0
LONGEST = 500  # characters of a tracker's error in a message
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
PROGRAMS: Mapping[TrackerName, Callable[[Subject, str | None, str | None], Tracker]] = {
    "tensorboard": EventFile,
    "mlflow": MlflowRun,
    "wandb": WandbRun,
}
REMEDIES: Mapping[TrackerName, str] = {
    "mlflow": "Set MLFLOW_TRACKING_URI to a server or a database that answers (sqlite:///PATH is a file)",
    "wandb": "Log in with `wandb login`, or set WANDB_MODE=offline",
}
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "WANDB_API_KEY")
UNREADABLE = (OSError, StorageError, ValueError, KeyError, TypeError)  # of a file that is just being replaced
Reader = Callable[[int], Sequence[Entry]]


class Tracking:
    """The trackers of a run. A `with` block, also inside another, is the time that the run is shown as running.

    folder: of the run. Raises ConfigError if the package of a tracker is not installed. Entering raises ConfigError if
    a tracker cannot start. One that fails later is left out from then on, with a warning.
    """

    def __init__(self, config: Config, folder: Place) -> None:
        for name in config.trackers:
            require_package(name)
        self._names = list(config.trackers)
        params = flat(config.model_dump(mode="json"))
        self._whole = Subject(title=config.name, folder=folder, params=params, trackers=SHOWS_RUNS)
        self._lock = threading.RLock()  # trainings for several targets report from threads of their own
        self._entered = 0
        self._open: dict[tuple[str, TrackerName], Tracker] = {}
        self._records: dict[str, dict[str, dict[str, Any]]] = {}

    def __enter__(self) -> Self:
        with self._lock:
            self._entered += 1
            if self._entered == 1:
                self._start()
        return self

    def _start(self) -> None:
        for name in self._of(self._whole):
            try:
                with _little_patience():
                    self._tracker(name, self._whole)
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
        """Report what `read` finds after the last step that was reported."""
        with self._lock, suppress(*UNREADABLE):  # what cannot be read now, the next look may find
            found = read(self._behind(subject))
            if found and self._open_all(subject):
                found = read(self._behind(subject))  # a tracker that has lost its run needs all steps again
            self.log(subject, found)

    def _behind(self, subject: Subject) -> int:
        """The last step that all trackers of the subject were given."""
        return min((self._last(name, subject) for name in self._of(subject)), default=sys.maxsize)

    def _open_all(self, subject: Subject) -> bool:
        """Open the runs of a subject that are not open; return whether there were any."""
        closed = [name for name in self._of(subject) if (str(subject.folder), name) not in self._open]
        for name in closed:
            with self._tolerated(name):
                self._tracker(name, subject)
        return bool(closed)

    def log(self, subject: Subject, entries: Sequence[Entry]) -> None:
        """Give every tracker of the subject the entries, in the order of their steps, that it does not have."""
        with self._lock:
            for name in self._of(subject):
                with self._tolerated(name):
                    self._give(name, subject, entries)

    def figures(self, figures: Mapping[str, float], subject: Subject | None = None) -> None:
        """Report the final figures of a subject, the whole run if None, unless they are those of last time."""
        subject = subject or self._whole
        digest = hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()
        with self._lock:
            for name in self._of(subject):
                if self._record(subject).get(name, {}).get("figures") != digest:
                    with self._tolerated(name):
                        self._give(name, subject, [(self._last(name, subject) + 1, figures)])
                        self._keep(name, subject, figures=digest)

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
        """The trackers that show a subject and have not failed."""
        return [name for name in self._names if name in subject.trackers]

    @contextmanager
    def _tolerated(self, name: TrackerName) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any class: each package has its own
            self._names.remove(name)
            for key in [key for key in self._open if key[1] == name]:
                del self._open[key]  # closing it might wait for minutes, for a server that is gone
            logger.warning(
                f"The tracker {name} failed ({words_of(error)}). It is left out until this command ends; the run "
                "itself goes on, and its own files are complete."
            )

    def _give(self, name: TrackerName, subject: Subject, entries: Sequence[Entry]) -> None:
        if all(step <= self._last(name, subject) for step, _ in entries):
            return
        tracker = self._tracker(name, subject)  # if it does not know its run any more, it starts with no step
        last = self._last(name, subject)
        new = [(step, _finite(scalars)) for step, scalars in entries if step > last]
        self._keep(name, subject, step=new[-1][0])
        tracker.log(new)

    def _tracker(self, name: TrackerName, subject: Subject) -> Tracker:
        key = (str(subject.folder), name)
        if key not in self._open:
            known = self._record(subject).get(name, {}).get("id")
            parent = None if subject is self._whole else self._record(self._whole).get(name, {}).get("id")
            self._open[key] = tracker = PROGRAMS[name](subject, known, parent)
            if tracker.id != known:
                self._record(subject)[name] = {}
                self._keep(name, subject, id=tracker.id)
        return self._open[key]

    def _last(self, name: TrackerName, subject: Subject) -> int:
        """The last step that a tracker was given; -1 for none."""
        step = self._record(subject).get(name, {}).get("step")
        return step if isinstance(step, int) else -1

    def _record(self, subject: Subject) -> dict[str, dict[str, Any]]:
        """What the trackers of a subject were given, by tracker."""
        key = str(subject.folder)
        if key not in self._records:
            try:
                found = read_json(subject.folder / RECORD)
            except (OSError, ValueError):
                found = None
            entries = found.items() if isinstance(found, dict) else ()
            self._records[key] = {name: given for name, given in entries if isinstance(given, dict)}
        return self._records[key]

    def _keep(self, name: TrackerName, subject: Subject, **values: Any) -> None:
        record = self._record(subject)
        record[name] = record.get(name, {}) | values
        write_text(subject.folder / RECORD, json.dumps(record))


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


def words_of(error: Exception) -> str:
    """The class and text of an error in one line, without passwords and keys."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    passwords = re.findall(r"://[^/:@\s]*:(\S+)@", os.environ.get("MLFLOW_TRACKING_URI", ""))
    for secret in (*passwords, *filter(None, map(os.environ.get, SECRETS))):
        text = text.replace(secret, "***").replace(unquote(secret), "***")
    text = re.sub(r"://\S*@", "://***@", text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


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

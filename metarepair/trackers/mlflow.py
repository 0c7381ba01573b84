"""Report to MLflow: at MLFLOW_TRACKING_URI, in the experiment MLFLOW_EXPERIMENT_NAME, or else `metarepair`."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

from metarepair.config.section import in_yaml
from metarepair.runs.context import Entry
from metarepair.trackers.tracker import PROJECT, Status, Subject

# What MLflow takes at most
METRICS, PARAMS, CHARACTERS = 1000, 100, 6000


class MlflowRun:
    """One run of MLflow, below that of its parent."""

    def __init__(self, subject: Subject, known: str | None, parent: str | None) -> None:
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # its notes would interrupt the progress
        self._client = MlflowClient()
        if known is not None and self._exists(known):
            self._client.update_run(known, status="RUNNING")
            self.id = known
        else:
            self.id = self._created(subject, parent)

    def _exists(self, run: str) -> bool:
        """Whether this server has the run: it may be another than before, or the run was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _created(self, subject: Subject, parent: str | None) -> str:
        from mlflow.entities import Param

        if parent is None:
            experiment, tags = self._experiment(), {}
        else:
            experiment = self._client.get_run(parent).info.experiment_id
            tags = {"mlflow.parentRunId": parent}
        run: str = self._client.create_run(experiment, tags=tags, run_name=subject.title).info.run_id
        params = [Param(_plain(key), _text(value)) for key, value in subject.params.items()]
        for some in _parts(params, PARAMS):
            self._client.log_batch(run, params=some)
        return run

    def _experiment(self) -> str:
        given = os.environ.get("MLFLOW_EXPERIMENT_ID")
        if given:
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        return str(self._client.create_experiment(name) if found is None else found.experiment_id)

    def log(self, entries: Sequence[Entry]) -> None:
        """Add the scalars with the present time."""
        from mlflow.entities import Metric

        now_ms = time.time_ns() // 1_000_000
        metrics = [
            Metric(_plain(name), value, now_ms, step)
            for step, scalars in entries
            for name, value in scalars.items()
        ]
        for some in _parts(metrics, METRICS):
            self._client.log_batch(self.id, metrics=some)

    def close(self, status: Status) -> None:
        """Set the status of the run."""
        self._client.set_terminated(self.id, status=status)


def _parts(values: list[Any], size: int) -> Iterator[list[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _plain(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else in_yaml(value)
    return text if len(text) <= CHARACTERS else f"{text[: CHARACTERS - 1]}…"

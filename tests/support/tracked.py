"""Send MLflow and Weights & Biases to a folder of a test, and read back what they were given."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BLOCK_BYTES, HEADER_BYTES = 1 << 15, 7  # of a log file of Weights & Biases, which has the format of LevelDB's


def use_mlflow_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MLflow write its file store into a folder, and call nobody."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", folder.as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for variable in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(variable, raising=False)


def use_wandb_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Weights & Biases write offline runs into a folder, and call nobody."""
    folder.mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for variable in ("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(folder))
    for variable in ("WANDB_PROJECT", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)


def mlflow_runs(experiment: str = "metarepair") -> dict[str, Any]:
    """The runs of an experiment by name."""
    from mlflow import MlflowClient

    client = MlflowClient()
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def mlflow_steps(run: Any, metric: str) -> list[int]:
    """The steps at which a metric was logged, in the order of the steps."""
    from mlflow import MlflowClient

    return sorted(one.step for one in MlflowClient().get_metric_history(run.info.run_id, metric))


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a log file of Weights & Biases."""
    from wandb.proto import wandb_internal_pb2

    content, at, whole = path.read_bytes(), HEADER_BYTES, b""
    while at + HEADER_BYTES <= len(content):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < HEADER_BYTES:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + HEADER_BYTES : at + HEADER_BYTES + size]
        at += HEADER_BYTES + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""

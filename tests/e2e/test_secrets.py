"""Secrets of the environment and of paths are written nowhere: not in a run, its report, its log or an error."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from metarepair.cli import main
from tasks.errors import ConfigError
from tasks.storage.paths import place

SECRET = "SECRET-4f1c9b"
VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "RAY_AUTH_TOKEN",
    "WANDB_API_KEY",
)


@pytest.mark.slow
def test_a_run_writes_and_prints_no_secret_of_the_environment(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, SECRET)
    given = ["--config", str(tiny_run / "tiny.yaml"), "--storage", str(tiny_run / "runs")]
    assert main(["run", *given, "--restart", "--verbose"]) == 0
    assert main(["inspect", str(tiny_run / "runs" / "tiny"), "--json"]) == 0
    assert main(["doctor"]) == 0
    printed = capfd.readouterr()
    assert "MetaRepair" in printed.out
    assert SECRET not in printed.out + printed.err
    files = [path for path in tiny_run.rglob("*") if path.is_file()]
    assert any(path.suffix == ".html" for path in files)
    assert any("tfevents" in path.name for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    "path",
    [f"s3://AKIA:{SECRET}@bucket/runs", f"s3://bucket/runs?secret_key={SECRET}", f"gs://{SECRET}@bucket/a"],
)
def test_credentials_in_a_path_are_refused_without_being_repeated(
    path: str, tiny_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="holds credentials or options") as refused:
        place(path)
    assert SECRET not in "".join(traceback.format_exception(refused.value, chain=True))
    for command in (
        ["mine", "--config", str(tiny_run / "tiny.yaml"), "--storage", path],
        ["status", path],
        ["inspect", path],
        ["doctor", "--storage", path],
    ):
        assert main(command) == 2, command
        printed = capfd.readouterr()
        assert "holds credentials or options" in printed.out + printed.err, command
        assert SECRET not in printed.out + printed.err, command

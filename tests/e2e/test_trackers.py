"""A run and its trainings are shown by trackers: once, also after Ctrl-C; trackers change no result."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from metarepair.cli import main
from metarepair.meta_training.meta_train import MetaTrainer
from metarepair.trackers.tracking import RETRIES
from tasks.storage.manifest import MANIFEST
from tracked import mlflow_runs, mlflow_steps, use_mlflow_in

SECRET = "SECRET-4f1c9b"


@pytest.fixture
def command(tmp_path: Path, tiny_settings: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`metarepair run` of a tiny run of four episodes, with MLflow's file store in a folder of the test."""
    use_mlflow_in(tmp_path / "store", monkeypatch)
    settings = tiny_settings.replace("train: {episodes: 2", "train: {episodes: 4")
    (tmp_path / "tiny.yaml").write_text(f"{settings}trackers: [tensorboard, mlflow]\n", encoding="utf-8")
    return ["run", "--config", str(tmp_path / "tiny.yaml"), "--storage", str(tmp_path / "runs")]


@pytest.mark.slow
def test_a_run_that_was_stopped_and_resumed_is_shown_once(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_episode = MetaTrainer.run_episode

    def stopped(trainer: MetaTrainer) -> dict[str, float]:
        if trainer.episode == 2:
            raise KeyboardInterrupt
        return run_episode(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetaTrainer, "run_episode", stopped)
        assert main(command) == 1
    assert mlflow_runs()["tiny"].info.status == "KILLED"
    assert main(command) == 0
    runs = mlflow_runs()
    assert {name: run.info.status for name, run in runs.items()} == {
        "tiny": "FINISHED",
        "tiny train gaussian_noise": "FINISHED",
    }
    whole, child = runs["tiny"], runs["tiny train gaussian_noise"]
    assert child.data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert mlflow_steps(child, "query_loss") == mlflow_steps(child, "validation_accuracy") == [1, 2, 3, 4]
    assert whole.data.params["train.episodes"] == child.data.params["train.episodes"] == "4"
    assert whole.data.metrics["gaussian_noise/none/D_fail"] == 0
    assert 0 < whole.data.metrics["gaussian_noise/metarepair/clean"] <= 1
    assert list((tmp_path / "runs/tiny/meta/gaussian_noise/tensorboard").glob("events.out.tfevents.*"))

    def manifests() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob(MANIFEST)}

    before = manifests()
    assert len(before) > 5
    assert main([*command, "--set", "trackers=[]"]) == 0
    assert manifests() == before, "other trackers repeat nothing"


def test_a_missing_package_ends_before_any_work(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert main(command) == 2
    assert "pip install 'metarepair[mlflow]'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_server_that_does_not_answer_ends_before_any_work_and_no_password_is_shown(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@127.0.0.1:9")
    monkeypatch.setenv(RETRIES, "0")
    assert main([*command, "--debug", "--verbose", "--restart"]) == 2
    printed = capfd.readouterr()
    assert "the tracker mlflow cannot start" in printed.err
    assert SECRET not in printed.out + printed.err
    assert [path for path in (tmp_path / "runs").rglob("*") if path.is_file()] == []

"""Provide a tiny run, finished once per session; each test gets a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bad_input import Cli
from metarepair.cli import main

TINY = """\
name: tiny
workers: 0
device: cpu
targets: [gaussian_noise]
data: {name: cifar10_sample, max_train_images: 200, max_test_images: 200}
mining: {experiences: [shot_noise, impulse_noise], severities: [3, 5], collect: 20, shard_images: 100}
features: {extractor: deployed}
task: {shots: 1, query_size: 10}
inner: {steps: 1}
train: {episodes: 2, round_episodes: 1, tasks: 1}
repair: {episodes: 1, tasks: 1, methods: [none, metarepair]}
evaluate: {others: [], others_images: 20}
"""


@pytest.fixture(scope="session")
def tiny_settings() -> str:
    """The YAML settings of a run that takes seconds."""
    return TINY


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny.yaml` and the finished run `runs/tiny`; tests must not write to it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    assert main(["run", "--config", str(folder / "tiny.yaml"), "--storage", str(folder / "runs")]) == 0
    return folder


@pytest.fixture
def tiny_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of `finished_run` that the test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "finished"))


@pytest.fixture
def done(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line on a finished run."""
    return Cli(tiny_run, capsys)


@pytest.fixture
def fresh(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line on a settings file, without a run."""
    shutil.copy(finished_run / "tiny.yaml", tmp_path)
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    return Cli(tmp_path, capsys)

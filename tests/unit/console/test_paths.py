"""Check that a missing path is refused before torch is imported and that a failed command leaves no empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.console.paths import check_paths
from metarepair.runs.layout import open_run, run_of, without_empty_run
from metarepair.weights import SHIPPED, resolve_weights
from tasks.datasets import DATA_VARIABLE
from tasks.errors import DataError, UserError, WeightsError
from tasks.storage.file_lock import lock_file, unlock_file

ROOT = Path(__file__).parents[3]
SAMPLE = str(ROOT / "tune_configs" / "sample.yaml")
CASES: dict[str, list[str]] = {
    "no such file": ["run", "--weights", "missing.pth"],
    "is not shipped": ["mine", "--weights", "shipped:missing"],
    "data.archive": ["run", "--set", "data.archive=missing"],
    "missing is not a file": [
        *("run", "--set", "features.extractor=timm:resnet18"),
        *("--set", "features.weights=missing"),
    ],
    "no FID Inception weights": [
        *("score", "--set", "features.extractor=inception"),
        *("--set", "features.weights=missing"),
    ],
    "data root missing": ["pretrain", "--set", "data.name=cifar10", "--set", "data.root=missing"],
    "data root missing ": ["train", "--set", "data.name=tinyimagenet", "--set", "data.root=missing"],
    "data.train": [
        *("repair", "--set", "data.name=imagefolder"),
        *("--set", "data.train=missing", "--set", "data.test=missing"),
    ],
    "data.train ": [
        *("hypothesis", "--set", "data.name=parquet"),
        *("--set", "data.train=missing", "--set", "data.test=missing"),
    ],
    "no method of compare.methods": ["compare", "--pair", "none", "missing"],
    "holds no comparison": ["compare", "--pair", "none", "finetune"],
}
SCRIPT = """
import contextlib, io, json, sys
from metarepair.cli import main
found = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(arguments)
    found.append([code, err.getvalue(), sorted({"torch", "timm", "ray"} & set(sys.modules))])
print(json.dumps(found))
"""


def config_of(**values: object) -> Config:
    return parse_config({"name": "made", "mining": {"experiences": ["fog"]}} | values)


def fail_in(config: Config, error: BaseException, *files: str) -> None:
    """Run a command that opens the run, writes `files` there, and fails."""

    def command() -> None:
        with without_empty_run(config):
            root = open_run(config).root
            assert (root.is_dir(), list(root.iterdir())) == (True, [])
            for name in files:
                (root / name).touch()
            raise error

    with pytest.raises(type(error), match="failed"):
        command()


def test_a_missing_path_is_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    rest = ["--config", SAMPLE, "--storage", str(tmp_path / "runs")]
    export = ["export", "missing", "--format", "torch", "--out", "x"]
    commands = [*([*arguments, *rest] for arguments in CASES.values()), export]
    commands.append(["run", "--config", "missing.yaml"])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != DATA_VARIABLE} | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [*CASES, "does not exist. Give STORAGE/NAME", "missing.yaml cannot be read"]
    for words, (code, message, modules) in zip(said, json.loads(done.stdout), strict=True):
        assert (code, modules) == (2, []), message
        assert words.strip() in message
        assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_report_does_not_need_the_inputs_of_the_run(tmp_path: Path) -> None:
    config = config_of(model={"weights": str(tmp_path / "gone.pth")})
    check_paths(config, "report")
    check_paths(config, "pretrain")  # it creates the weights
    with pytest.raises(WeightsError, match="no such file"):
        check_paths(config, "repair")


def test_each_given_folder_of_a_split_is_checked_separately(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    data = {"name": "imagefolder", "train": str(tmp_path / "train"), "test": str(tmp_path / "test")}
    with pytest.raises(DataError, match=r"data\.test"):
        check_paths(config_of(data=data), "run")
    (tmp_path / "test").mkdir()
    check_paths(config_of(data=data), "run")


def test_a_folder_is_refused_as_a_weights_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a folder"):
        resolve_weights(str(tmp_path))
    assert resolve_weights("shipped:resnet8_cifar10").parent == SHIPPED


def test_a_command_that_fails_removes_the_empty_folders_that_it_created(tmp_path: Path) -> None:
    config = config_of(storage_path=str(tmp_path / "a" / "b"))
    fail_in(config, UserError("failed"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_existed_before_or_is_not_empty_stays(tmp_path: Path) -> None:
    config = config_of(storage_path=str(tmp_path / "runs"))
    root = run_of(config).root
    (tmp_path / "runs").mkdir()
    fail_in(config, KeyboardInterrupt("failed"))
    assert (tmp_path / "runs").is_dir()
    assert not root.exists()
    fail_in(config, UserError("failed"), "kept")
    assert [p.name for p in tmp_path.rglob("*")] == ["runs", "made", "kept"]
    (root / "kept").unlink()
    with without_empty_run(config):
        pass
    assert root.is_dir(), "it was there before"


def test_a_storage_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = config_of(storage_path=str(tmp_path / "file" / "runs"))
    with pytest.raises(UserError, match="cannot be written"), without_empty_run(config):
        open_run(config)
    assert (tmp_path / "file").is_file()


def test_the_folder_of_a_locked_run_cannot_be_removed_as_empty(tmp_path: Path) -> None:
    """Of two concurrent commands, the one that fails removes the folders that both created."""
    lock = tmp_path / "runs" / "made" / "lock"
    descriptor = lock_file(lock)
    assert descriptor is not None
    with pytest.raises(OSError, match="not empty"):
        lock.parent.rmdir()
    unlock_file(lock, descriptor)
    assert not lock.exists()

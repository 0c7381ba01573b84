"""Two commands on one run: the second is refused and the first ends normally; a killed command blocks no other."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import metarepair
from metarepair.cli import main
from tasks.storage.lease import LEASE
from tasks.storage.manifest import require_manifest
from tasks.storage.run_lock import LOCK, holder
from waiting import wait_for_end, wait_until

STAGES = ("experiences/shot_noise", "targets/gaussian_noise")


@contextmanager
def started_command(verb: str, folder: Path, storage: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in its own process, which already holds the lease of the run; it is killed at the end."""
    command = [sys.executable, "-m", "metarepair", *arguments(verb, folder, storage)]
    root = Path(str(metarepair.__file__)).parent.parent
    child = subprocess.Popen(command, cwd=root)
    try:
        wait_until((storage / "tiny" / LEASE).exists, "a lease of the run", process=child, every_s=0.02)
        yield child
    finally:
        child.kill()
        child.wait()


def arguments(verb: str, folder: Path, storage: Path) -> list[str]:
    return [verb, "--config", str(folder / "tiny.yaml"), "--storage", str(storage)]


def status(run: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["status", str(run), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.slow
def test_a_second_command_is_refused_and_the_first_ends_normally(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "tiny"
    with started_command("run", finished_run, tmp_path) as first:
        for verb in ("run", "mine", "pretrain", "report"):
            assert main(arguments(verb, finished_run, tmp_path)) == 2
            error = capsys.readouterr().err
            assert f"`metarepair run` (process {first.pid} on host " in error
            assert error.count("\n") == 1
        told = status(run, capsys)
        assert (told["state"], told["holder"]["pid"], told["holder"]["alive"]) == (
            "under way",
            first.pid,
            True,
        )
        assert wait_for_end(first) == 0
    weights = "repaired/gaussian_noise/metarepair/0/model.safetensors"
    assert (run / weights).read_bytes() == (finished_run / "runs" / "tiny" / weights).read_bytes()
    assert holder(run) is None
    assert not {LEASE, LOCK} & {path.name for path in run.iterdir()}
    assert status(run, capsys)["state"] == "finished"


def test_status_of_an_interrupted_run_follows_from_its_files(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run / "runs" / "tiny"
    for stage in ("meta/gaussian_noise", "features/target-gaussian_noise", "experiences/shot_noise"):
        (run / stage / "manifest.json").unlink()
    shutil.rmtree(run / "repaired")
    shutil.rmtree(run / "report")
    found = {stage["name"]: stage for stage in status(run, capsys)["stages"]}
    assert {name: (stage["state"], stage["done"], stage["total"]) for name, stage in found.items()} == {
        "mine": ("begun", 2, 3),
        "features": ("begun", 2, 3),
        "score": ("done", 1, 1),
        "train": ("begun", 0, 1),
        "repair": ("not begun", 0, 1),
        "report": ("not begun", 0, 1),
    }
    trained = found["train"]["members"][0]
    assert (trained["name"], trained["done"], trained["total"]) == ("gaussian_noise", 2, 2)
    assert {"query_loss", "validation_accuracy"} <= trained["metrics"].keys()
    features = found["features"]["members"][2]
    assert (features["role"], features["done"], features["total"]) == ("target", 1, 1)
    assert main(arguments("run", tiny_run, tiny_run / "runs")) == 0
    assert status(run, capsys)["state"] == "finished"


def test_a_killed_command_does_not_block_the_next_one(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "tiny"
    with started_command("mine", finished_run, tmp_path) as first:
        first.kill()
        first.wait()
        assert (run / LEASE).exists()
        told = status(run, capsys)
        assert (told["holder"]["pid"], told["holder"]["alive"]) == (first.pid, False)
        assert told["state"] in ("not begun", "unfinished")
        assert main(arguments("mine", finished_run, tmp_path)) == 0
    for stage in STAGES:
        before = require_manifest(finished_run / "runs" / "tiny" / stage, "")
        assert require_manifest(run / stage, "").digest == before.digest
    assert holder(run) is None

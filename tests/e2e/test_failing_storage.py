"""Storage that fails during training gives a one-paragraph error, and a rerun ends with bit-identical weights."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from moto.server import ThreadedMotoServer
from pyarrow.fs import S3FileSystem
from safetensors.torch import load_file

from metarepair.cli import main
from metarepair.runs.context import LocalContext
from tasks.storage.paths import local, place
from tasks.storage.remote import CACHE_VARIABLE

META = Path("tiny", "meta", "gaussian_noise")


def train(tiny_run: Path, storage: str, *more: str) -> int:
    config = ["--config", str(tiny_run / "tiny.yaml"), "--storage", storage]
    return main(["train", *config, "--set", "train.episodes=4", *more])


def fails_from(call: int, error: OSError) -> Callable[..., Any]:
    """A `shutil.copyfile` that raises `error` from call number `call` on; it writes the files of checkpoints."""
    copy, calls = shutil.copyfile, list[int]()

    def copying(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) >= call:
            raise error
        return copy(*arguments, **options)

    return copying


@pytest.fixture(scope="module")
def undisturbed(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of an uninterrupted training of four episodes."""
    folder = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("whole") / "finished"))
    assert train(folder, str(folder / "runs"), "--restart") == 0
    return folder / "runs"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.ESTALE, "Stale file handle"),
    ],
)
def test_training_resumes_after_a_disk_failure(
    tiny_run: Path,
    undisturbed: Path,
    error: OSError,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = str(tiny_run / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", fails_from(6, error))  # within the second checkpoint
        assert train(tiny_run, runs, "--restart") == 2
    said = capsys.readouterr().err
    assert "checkpoint of episode" in said
    assert str(error.strerror) in said
    assert "run the same command again to resume" in said
    assert "Traceback" not in said
    assert not (Path(runs) / META / "manifest.json").exists()
    assert train(tiny_run, runs) == 0
    assert "already done; resuming" in capsys.readouterr().err
    found = (load_file(Path(root, META, "start.safetensors")) for root in (runs, undisturbed))
    assert_equal(*found)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ThreadedMotoServer]:
    """An S3 server for one test, which can stop and come back with its contents."""
    made = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    endpoint = "http://{}:{}".format(*made.get_host_and_port())
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, endpoint)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    options = {"access_key": "none", "secret_key": "none", "region": "us-east-1"}
    S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True, **options).create_dir("goes-away")
    yield made
    made.stop()


@pytest.mark.slow
@pytest.mark.soak
def test_training_resumes_after_an_endpoint_goes_away_and_comes_back(
    tiny_run: Path,
    server: ThreadedMotoServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(tiny_run, str(tiny_run / "runs"), "--restart") == 0
    storage = "s3://goes-away/runs"
    config = ["--config", str(tiny_run / "tiny.yaml"), "--storage", storage]
    assert main(["mine", *config]) == 0
    assert main(["score", *config]) == 0
    host, port = server.get_host_and_port()
    report, reports = LocalContext.report, list[int]()

    def reporting(self: LocalContext, *arguments: Any) -> None:
        report(self, *arguments)
        reports.append(1)
        if len(reports) == 2:
            self.journal.checkpoints._wait()
            server.stop()

    with monkeypatch.context() as patch:
        patch.setattr(LocalContext, "report", reporting)
        assert train(tiny_run, storage) == 2
    said = capsys.readouterr().err
    assert "checkpoint of episode 3 cannot be written to s3://goes-away" in said
    again = ThreadedMotoServer(ip_address=host, port=port, verbose=False)
    again.start()
    try:
        assert train(tiny_run, storage) == 0
        assert "2 of 4 episodes already done" in capsys.readouterr().err
        ours = load_file(local(place(storage) / str(META) / "start.safetensors"))
        assert_equal(ours, load_file(tiny_run / "runs" / META / "start.safetensors"))
    finally:
        again.stop()


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)

"""Runs, data and weights in folders that cannot be written are inspected, reported elsewhere, exported and used."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from metarepair.cli import main
from metarepair.weights import resolve_weights
from mutations import at_each_change
from tasks.datasets import load_dataset
from tasks.datasets.source import DataSource


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Refuse every change below a folder, also to root, whom permissions do not bind."""

    def refuse(_: int, path: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    try:
        with at_each_change(folder, refuse, lease=True):
            yield
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(path.stat().st_mode | 0o200)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_run_is_inspected_reported_elsewhere_and_exported(tiny_run: Path, tmp_path: Path) -> None:
    out, run = tmp_path / "out", str(tiny_run / "runs" / "tiny")
    given = ["--config", str(tiny_run / "tiny.yaml"), "--storage", str(tiny_run / "runs")]
    with read_only(tiny_run):
        assert main(["inspect", run]) == 0
        assert main(["inspect", run, "--sheet", str(tmp_path / "sheet.png")]) == 0
        assert main(["status", run]) == 0
        assert main(["report", *given, "--out", str(out)]) == 0
        assert main(["export", run, "--format", "torch", "--out", str(tmp_path / "program.pt2")]) == 0
    names = {path.name for path in (Path(run) / "report").iterdir()}
    assert {path.name for path in out.iterdir()} == names
    assert f"{out}/results.csv" in (out / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "program.pt2").exists()


def test_a_report_into_the_run_that_cannot_be_written_is_refused(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--config", str(tiny_run / "tiny.yaml"), "--storage", str(tiny_run / "runs")]
    with read_only(tiny_run):
        assert main(["report", *given]) == 2
        assert "--storage PATH" in capsys.readouterr().err
        assert main(["report", *given, "--out", "elsewhere", "--restart"]) == 2
        assert "leave out --restart" in capsys.readouterr().err
        assert main(["report", *given, "--out", ""]) == 2
        assert "a path is empty" in capsys.readouterr().err
    assert main(["report", *given, "--out", str(tiny_run / "tiny.yaml")]) == 2
    assert "Something else is there" in capsys.readouterr().err


def test_data_and_weights_are_used(tmp_path: Path, tiny_settings: str) -> None:
    given = tmp_path / "given"
    (given / "cifar10").mkdir(parents=True)
    for split in ("train", "test"):
        data = load_dataset(DataSource(name="cifar10_sample"), split)
        arrays = {"images": data.images_NHWC[:200], "labels": data.labels_N[:200]}
        np.savez(given / "cifar10" / f"{split}.npz", **arrays)
    shutil.copy(resolve_weights("shipped:resnet8_cifar10"), given / "net.safetensors")
    (given / "tiny.yaml").write_text(tiny_settings, encoding="utf-8")
    options = ["--config", str(given / "tiny.yaml"), "--storage", str(tmp_path / "runs")]
    options += ["--set", "data.name=cifar10", "--set", f"data.root={given}"]
    with read_only(given):
        assert main(["mine", *options, "--weights", str(given / "net.safetensors")]) == 0
    assert list((tmp_path / "runs" / "tiny" / "experiences").glob("*/manifest.json"))

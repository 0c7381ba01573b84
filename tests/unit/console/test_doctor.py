"""Check that `metarepair doctor --model` reports a repairable DNN, or the obstacle in one paragraph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metarepair.cli import main
from metarepair.weights import resolve_weights
from tasks.storage.paths import Place

FACTORIES = """
import torch
from torch import nn


class Grey(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 10))

def eleven():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 11))

def right():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(256, 10))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets_of_doctor.py").write_text(FACTORIES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def examined(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["doctor", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    ("root", "says"),
    [
        (None, "METAREPAIR_DATA is not set"),
        ("", "METAREPAIR_DATA is not set"),
        ("nowhere", "METAREPAIR_DATA=nowhere is not a folder"),
    ],
)
def test_data_sets_without_a_folder_share_one_line(
    root: str | None,
    says: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("METAREPAIR_DATA", raising=False)
    if root is not None:
        monkeypatch.setenv("METAREPAIR_DATA", root)
    code, out, err = examined(capsys)
    assert code == 0, err
    assert "data       cifar10_sample: " in out
    (line,) = (line.strip() for line in out.splitlines() if "not found" in line)
    assert line.startswith(f"cifar10, cifar100, tinyimagenet: not found ({says}). Set it to the folder")


def test_a_data_set_that_its_folder_lacks_has_a_line_of_its_own(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("METAREPAIR_DATA", str(here))
    code, out, err = examined(capsys)
    assert code == 0, err
    missing = [line.strip() for line in out.splitlines() if "not found" in line]
    assert [line.partition(":")[0] for line in missing] == ["cifar10", "cifar100", "tinyimagenet"]
    assert all(line.endswith(f"(METAREPAIR_DATA={here})") for line in missing)
    assert f"No CIFAR-10 under {here}" in missing[0]


@pytest.mark.parametrize(("threads", "says"), [(1, "1 thread"), (2, "2 threads")])
def test_threads_are_counted_in_words(
    threads: int, says: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    code, out, err = examined(capsys)
    assert code == 0, err
    assert f"devices    cpu only, {says}\n" in out


def test_a_repairable_dnn_is_reported_as_such(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = examined(capsys, "--model", "nets_of_doctor:right")
    assert code == 0, err
    assert "meta-gradient within" in out.splitlines()[-1]
    assert "new random weights" in out.splitlines()[-1]
    weights = f"{resolve_weights('shipped:resnet8_cifar10')}"
    code, out, err = examined(capsys, "--model", "resnet8_cifar", "--weights", weights)
    assert code == 0, err
    assert "new random weights" not in out


def test_a_prefix_in_the_weights_is_reported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nets_of_doctor import right  # type: ignore[import-not-found]

    torch.save({"state_dict": {f"model.{k}": v for k, v in right().state_dict().items()}}, "mine.pth")
    code, out, err = examined(capsys, "--model", "nets_of_doctor:right", "--weights", "mine.pth")
    assert code == 0, err
    assert "prefix 'model.'" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "nets_of_doctor:Grey"), "cannot take a batch of images of 32×32 pixels with 3 channels"),
        (("--model", "nets_of_doctor:eleven"), "returns 11 logits, and the data set has 10 classes"),
        (("--model", "vit_tiny_patch16_224"), "cannot take a batch of images of 32×32 pixels"),
        (
            ("--model", "nets_of_doctor:right", "--set", "model.normalisation=checkpoint"),
            "states no mean and std",
        ),
        (("--weights", "any.pth"), "--model NAME or --config FILE"),
        (("--set", "model.name=resnet8_cifar"), "--model NAME or --config FILE"),
    ],
)
def test_an_obstacle_is_reported_in_one_paragraph(
    arguments: tuple[str, ...], says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = examined(capsys, *arguments)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1


def test_storage_is_examined_where_it_is(capsys: pytest.CaptureFixture[str], root: Place) -> None:
    code, out, _ = examined(capsys, "--storage", str(root / "runs"))
    assert code == 0
    assert f"storage    {root / 'runs'}: writable" in out


def test_a_bucket_that_does_not_exist_is_reported_with_the_remedy(
    capsys: pytest.CaptureFixture[str], s3: str
) -> None:
    code, out, _ = examined(capsys, "--storage", "s3://absent-bucket/runs")
    assert code == 0
    assert "storage    NOT usable: s3://absent-bucket" in out
    assert "Check the bucket's name" in out

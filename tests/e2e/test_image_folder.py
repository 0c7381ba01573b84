"""A run on the user's own images, in one folder per class, from the command line to D_collect and distances."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metarepair.cli import main
from tasks.datasets import CIFAR10_CLASSES, DATA_VARIABLE, Split, load_dataset
from tasks.experiences.store import open_side
from tasks.storage.manifest import require_manifest

CONFIG = """\
name: own
workers: 0
device: cpu
targets: [gaussian_noise]
data: {{name: imagefolder, root: {root}, mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616]}}
mining: {{experiences: [shot_noise], severities: [3, 5], collect: 20, pixels: recomputed}}
features: {{extractor: deployed}}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """100 training and 100 test images of the sample as PNG files, ten per class, with a configuration."""
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        data = load_dataset("cifar10_sample", split)
        for label, name in enumerate(CIFAR10_CLASSES):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for row in np.flatnonzero(data.labels_N == label)[:10]:
                Image.fromarray(data.images_NHWC[row]).save(folder / f"{data.image_ids_N[row]:05d}.png")
    (tmp_path / "own.yaml").write_text(CONFIG.format(root=tmp_path / "images"), encoding="utf-8")
    return tmp_path


def call(verb: str, folder: Path, *more: str) -> int:
    return main([verb, "--config", str(folder / "own.yaml"), "--storage", str(folder / "runs"), *more])


def test_a_run_on_a_folder_of_images(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hidden = own / "images" / "train" / "cat" / ".ipynb_checkpoints"
    hidden.mkdir()
    (own / "images" / "train" / "cat" / "notes.txt").touch()
    assert call("mine", own) == 0
    noted = (
        f"Passed over in {own / 'images' / 'train'}: 1 hidden (cat/.ipynb_checkpoints); 1 with another suffix"
    )
    assert capsys.readouterr().out.count(noted) == 1
    Image.new("RGB", (32, 32)).save(hidden / "0-checkpoint.png")  # hidden, so not part of the data
    assert call("score", own) == 0
    run = own / "runs" / "own"
    manifest = require_manifest(run / "targets" / "gaussian_noise", "")
    assert manifest.facts["examined"] == {"3": 100, "5": 100}
    assert manifest.facts["class_names"] == list(CIFAR10_CLASSES)
    assert "root" not in manifest.config["data"]
    # Clean accuracy on the sample is 90 %. If images and labels did not match, most images would be failures.
    assert manifest.facts["correct"]["3"] > 40
    failures = open_side(run / "targets" / "gaussian_noise", "collect", manifest)
    assert failures.images_NHWC.shape[1:] == (32, 32, 3)
    assert (run / "score" / "confidence.csv").is_file()
    capsys.readouterr()
    assert main(["inspect", str(run), "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    named = [s["details"]["collected_per_class"] for s in stages if s["kind"] == "environment"]
    assert [list(counts) for counts in named] == [list(CIFAR10_CLASSES)] * 2


def test_changed_images_under_the_same_path_are_refused(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("mine", own) == 0
    first = next((own / "images" / "test" / "cat").iterdir())
    Image.new("RGB", (32, 32)).save(first)
    assert call("mine", own) == 2
    assert "inputs.test" in capsys.readouterr().err


def test_doctor_finds_the_image_folder(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(own / "images"))
    assert main(["doctor", "--storage", str(own / "runs")]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "imagefolder: 100 test images of 10 classes" in lines
    assert any(line.startswith("tinyimagenet: not found") for line in lines)
    assert not any(line.startswith("parquet") for line in lines)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", "cannot be used: "),
        ("size", "set data.image_size"),
        ("empty", "holds no images"),
        ("class", "does not have"),
    ],
)
def test_unusable_images_are_refused_in_one_paragraph(
    own: Path, capsys: pytest.CaptureFixture[str], damage: str, message: str
) -> None:
    folder = own / "images" / "test" / "frog"
    file = next(folder.iterdir())
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:200])
    elif damage == "size":
        Image.new("RGB", (40, 32)).save(file)
    elif damage == "empty":
        for path in folder.iterdir():
            path.unlink()
    else:
        folder.rename(folder.with_name("toad"))
    assert call("mine", own) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("metarepair: ")]
    assert len(said) == 1
    assert message in said[0]
    assert str(own / "images" / "test") in said[0]
    assert not list(own.glob("runs/own/targets/*/manifest.json"))

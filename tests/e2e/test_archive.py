"""A published archive as the environment of a run, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from metarepair.cli import main
from tasks.corruptions import corrupt
from tasks.datasets import load_dataset
from tasks.experiences.store import open_side
from tasks.storage.manifest import require_manifest

CONFIG = """\
name: archived
workers: 0
device: cpu
targets: [gaussian_noise]
data: {{name: cifar10_sample, max_train_images: 200, max_test_images: 200, archive: {archive}}}
mining: {{experiences: [shot_noise], severities: [3, 5], collect: 20, shard_images: 100}}
features: {{extractor: deployed}}
task: {{shots: 1, query_size: 10}}
train: {{episodes: 1, round_episodes: 1, tasks: 1}}
repair: {{episodes: 1, tasks: 1, methods: [none, finetune]}}
evaluate: {{others: []}}
"""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The first 200 images of the sample in CIFAR-10-C's layout, with noise that differs from the generated noise."""
    data = load_dataset("cifar10_sample", "test").head(200)
    ids, count = data.image_ids_N, int(data.image_ids_N.max()) + 1
    labels = np.zeros(count, np.int64)
    labels[ids] = data.labels_N
    images = np.zeros((5, count, 32, 32, 3), np.uint8)
    for severity in range(1, 6):
        images[severity - 1, ids] = corrupt(
            data.images(np.arange(200)), image_ids_B=ids, corruption="GN", severity=severity, seed=77
        )
    root = tmp_path / "CIFAR-10-C"
    root.mkdir()
    np.save(root / "labels.npy", np.tile(labels, 5))
    np.save(root / "gaussian_noise.npy", images.reshape(-1, 32, 32, 3))
    return root


def call(verb: str, folder: Path, *more: str) -> int:
    return main([verb, "--config", str(folder / "a.yaml"), "--storage", str(folder / "runs"), *more])


def test_a_run_on_an_archive_repairs_and_evaluates_on_its_images(tmp_path, archive, capsys):
    (tmp_path / "a.yaml").write_text(CONFIG.format(archive=archive), encoding="utf-8")
    assert call("run", tmp_path) == 0
    root = tmp_path / "runs" / "archived"
    folder = root / "targets" / "gaussian_noise"
    manifest = require_manifest(folder, "")
    stored = np.load(archive / "gaussian_noise.npy").reshape(5, -1, 32, 32, 3)
    for side in ("collect", "fail"):
        failures = open_side(folder, side, manifest)
        assert np.array_equal(failures.images_NHWC, stored[failures.severities_N - 1, failures.image_ids_N])
    (path,) = root.glob("repaired/*/result.json")
    result = json.loads(path.read_text(encoding="utf-8"))
    rows, images = {row["method"]: row for row in result["methods"]}, result["judging"]["images"]
    # D_fail holds every failure of the images that judge, in two severities.
    assert rows["none"]["corrupted"] == pytest.approx(1 - manifest.rows["fail"] / (2 * images))
    # A changed archive counts as another environment.
    capsys.readouterr()
    noisier = np.load(archive / "gaussian_noise.npy")
    np.save(archive / "shot_noise.npy", noisier)
    assert call("mine", tmp_path) == 2
    assert "archive" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "missing", "labels", "no folder"])
def test_an_unusable_archive_is_refused_in_one_paragraph(tmp_path, archive, capsys, damage):
    (tmp_path / "a.yaml").write_text(CONFIG.format(archive=archive), encoding="utf-8")
    noise = archive / "gaussian_noise.npy"
    if damage == "truncated":
        noise.write_bytes(noise.read_bytes()[:1000])
    elif damage == "missing":
        noise.rename(archive / "fog.npy")
    elif damage == "labels":
        labels = np.load(archive / "labels.npy")
        np.save(archive / "labels.npy", (labels + 1) % 10)
    else:
        archive.rename(tmp_path / "elsewhere")
    assert call("mine", tmp_path) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("metarepair: ")]
    assert len(said) == 1
    assert str(archive) in said[0]
    assert not list(tmp_path.glob("runs/archived/targets/*/manifest.json"))

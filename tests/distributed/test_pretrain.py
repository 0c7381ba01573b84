"""Pretraining on a real local Ray trains the same model as one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distributed.stages.pretrain import pretrain_on_ray
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.stages.pretrain import pretrain_stage, read_epochs
from tasks.storage.paths import place

pytestmark = pytest.mark.distributed

SETTINGS = {
    "epochs": 2,
    "batch_size": 30,
    "validation_fraction": 0.2,
    "optimizer": "adamw",
    "rate": 1e-3,
    "mixup": 0.2,
    "accumulation": 2,
    "precision": "float64",
}


def pretraining(tiny: Callable[..., Config], storage: Path, workers: int, **changes: object) -> Config:
    values = tiny(storage, workers=workers, data={"max_train_images": 80}).model_dump(mode="json")
    model = {"name": "convnext_cifar"}
    return parse_config({**values, "model": model, "pretrain": {**SETTINGS, **changes}})


@pytest.mark.slow
def test_two_workers_pretrain_like_one_process_and_a_run_without_workers_resumes_theirs(
    cluster: None, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    alone, crew = pretraining(tiny, tmp_path / "alone", 0), pretraining(tiny, tmp_path / "crew", 2)
    pretrain_stage(alone, restart=False)
    pretrain_stage(crew, restart=False, train_elsewhere=pretrain_on_ray)
    folders = [tmp_path / name / "tiny" / "deployed" for name in ("alone", "crew")]
    one, two = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.allclose(one[k], two[k], rtol=0, atol=1e-6) for k in one)  # stored as float32
    losses = [[epoch["loss"] for epoch in read_epochs(place(str(folder)))] for folder in folders]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    assert losses[0][0] != losses[0][1]
    assert not (folders[1] / "ray").exists()
    (folders[1] / "manifest.json").unlink()  # as if killed just before the end
    pretrain_stage(pretraining(tiny, tmp_path / "crew", 0), restart=False)
    assert all(torch.equal(two[k], v) for k, v in load_file(folders[1] / "model.safetensors").items())

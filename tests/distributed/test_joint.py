"""What serves all targets is the same on a real local Ray as in one process: joint training, repairs of experiences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distributed.stages.executor import executor_for
from metarepair.config.run import Config
from metarepair.stages.pipeline import Pipeline
from metarepair.stages.pretrain import read_epochs

pytestmark = pytest.mark.distributed
JOINT: dict[str, Any] = {
    "rounds": 2,
    "round_steps": 3,
    "batch_size": 24,
    "groups": 3,
    "shift": 2,
    "precision": "float64",
}


@pytest.mark.slow
def test_zero_one_and_two_workers_train_the_same_dnn_and_one_resumes_their_training(
    cluster: None, tiny: Callable[..., Config], storage_of: Callable[[str], Path]
) -> None:
    found: list[dict[str, Tensor]] = []
    losses = []
    for workers in (0, 1, 2):
        pipeline = Pipeline(tiny(storage_of(f"w{workers}"), workers=workers, joint=JOINT), executor_for)
        pipeline.joint()
        folder = Path(str(pipeline.run.joint))
        found.append(load_file(folder / "model.safetensors"))
        losses.append([epoch["loss"] for epoch in read_epochs(pipeline.run.joint)])
        assert not (folder / "ray").exists()
    none, *others = found
    for other in others:
        assert all(torch.allclose(none[k], other[k], rtol=0, atol=1e-6) for k in none)  # stored as float32
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert losses[2] == pytest.approx(losses[0], rel=1e-9)
    start = pipeline.here.deployed.module.state_dict()
    assert any(not torch.allclose(start[k], none[k]) for k in none)
    (folder / "manifest.json").unlink()  # as if killed just before the end
    (folder / "model.safetensors").unlink()
    Pipeline(tiny(folder.parents[1], workers=0, joint=JOINT), executor_for).joint()
    assert all(torch.equal(found[2][k], v) for k, v in load_file(folder / "model.safetensors").items())


@pytest.mark.slow
def test_two_workers_make_the_same_repairs_of_experiences_as_one_process(
    cluster: None, tiny: Callable[..., Config], storage_of: Callable[[str], Path]
) -> None:
    settings = {"merged": {"epochs": 2, "batch_size": 20, "clean_images": 40}}
    found = []
    for name, workers in (("here", 0), ("ray", 2)):
        pipeline = Pipeline(tiny(storage_of(name), workers=workers, methods=settings), executor_for)
        pipeline.merged()
        folder = Path(str(pipeline.run.root)) / "merged"
        found.append({path.parent.name: path.read_bytes() for path in folder.rglob("model.safetensors")})
    assert len(found[0]) == 3
    assert found[0] == found[1]

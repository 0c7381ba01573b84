"""A `fix` on Ray hands over the weights that the same settings give in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.environments import write_environment
from distributed.stages.executor import executor_for
from metarepair.config.photographs import Photographs
from metarepair.fixing.plan import Speeds
from metarepair.stages import fix
from metarepair.stages.pipeline import Pipeline
from metarepair.weights import resolve_weights
from tasks.datasets import load_dataset

pytestmark = [pytest.mark.distributed, pytest.mark.soak]
SPEEDS = Speeds(
    step_s=1.0, image_s=1e-5, learned_image_s=1e-3, mined_image_s=1.0, task_s=1.0, support_images=100
)


def material(folder: Path) -> dict[str, Any]:
    """Write photographs and clean images; return the settings of a `fix` that uses them."""
    write_environment(folder, load_dataset("cifar10_sample", "test"), recipe="colour", images=160, seed=0)
    train = load_dataset("cifar10_sample", "train")
    for row in range(160):
        path = folder / "clean" / train.classes[train.labels_N[row]] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(train.images_NHWC[row]).save(path)
    given = Photographs(
        out=str(folder / "fixed"),
        images=str(folder / "colour"),
        clean=str(folder / "clean"),
        model="metarepair.models.resnet8:ResNet8",
        weights=str(resolve_weights("shipped:resnet8_cifar10")),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )
    return given.settings() | {"device": "cpu", "seed": 0, "limits": {"max_clean_drop": 0.9, "min_gain": 0.0}}


def test_workers_hand_over_the_weights_of_one_process(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fix, "measure", lambda *_: (SPEEDS, 1))
    request = fix.Request(settings=material(tmp_path) | {"workers": 2}, budget_s=110)
    work = fix.Fix(request, executor_for)
    config = work.plan()
    assert config.workers == 2
    assert config.joint.rounds >= 1
    assert work.repair(config).words
    here = config.model_copy(update={"workers": 0, "name": "here"})
    Pipeline(here).whole()
    ours, other = Path(str(work.run.root)), Path(str(work.run.root)).parent / "here"
    for method in ("bn_adapt", "none", "sgd"):  # made by one worker, bit for bit as in one process
        name = f"repaired/photographs/{method}/0/model.safetensors"
        assert (ours / name).read_bytes() == (other / name).read_bytes(), name
    # Two workers sum the gradients of a step's groups in another order, so they train the same DNN only up to rounding,
    # which grows from step to step.
    start = load_file(resolve_weights("shipped:resnet8_cifar10"))
    here_P, ray_P, start_P = (
        torch.cat([state[key].flatten().float() for key in start])
        for state in (*(load_file(folder / "joint/model.safetensors") for folder in (other, ours)), start)
    )
    assert torch.dist(here_P, ray_P) < 0.1 * torch.dist(here_P, start_P)

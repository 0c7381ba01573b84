"""Test that layers which oneDNN cannot differentiate in channels-last layout do not get it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from metarepair.models.build import DeployedModel, build_model, unsafe_layers

IMAGES = np.random.default_rng(0).integers(256, size=(4, 16, 16, 3), dtype=np.uint8)


def deployed(module: nn.Module) -> DeployedModel:
    return DeployedModel(name="a", module=module, num_classes=8, mean=(0.5,) * 3, std=(0.25,) * 3)


def narrow() -> nn.Module:
    """A shortcut of 4 channels, halved by a stride of 2, as in a small residual DNN."""
    body = (
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 8, 1, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return nn.Sequential(*body)


def test_only_narrow_strided_1x1_convolutions_are_unsafe() -> None:
    assert unsafe_layers(narrow()) == ["1"]
    safe = (
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(4, 8, 3, stride=2),
        nn.Conv2d(16, 8, 1, stride=2),
        nn.Conv1d(4, 8, 1, stride=2),
    )
    assert unsafe_layers(nn.Sequential(*safe)) == []
    assert unsafe_layers(nn.Conv2d(32, 32, 1, stride=(1, 2), groups=4)) == [""]


def test_images_and_weights_are_channels_last_only_where_that_is_safe() -> None:
    wide = build_model("resnet8_cifar", 10)
    last = torch.channels_last
    assert next(wide.parameters()).is_contiguous(memory_format=last)
    assert deployed(wide).normalise(IMAGES).is_contiguous(memory_format=last)
    images = deployed(narrow()).normalise(IMAGES)
    assert images.is_contiguous()
    assert torch.equal(images, deployed(wide).normalise(IMAGES))


CRASHED = """
import numpy as np, torch
from test_layout import IMAGES, deployed, narrow
torch.manual_seed(0)
module, double = narrow(), narrow().double()
double.load_state_dict(module.state_dict())
found, exact = ([p for p in m.parameters()] for m in (module, double))
for _ in range(20):
    loss = module(deployed(module).normalise(IMAGES)).square().sum()
    gradients = torch.autograd.grad(loss, found)
wanted = torch.autograd.grad(double(deployed(double).normalise(IMAGES)).square().sum(), exact)
for one, other in zip(gradients, wanted):
    torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)
"""


def test_gradients_of_such_a_layer_are_right_on_one_thread() -> None:
    """In channels-last layout this ends with a corrupted heap where the widest registers are those of AVX2."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", CRASHED], env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

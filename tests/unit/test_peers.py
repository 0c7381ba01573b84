"""The same meta-gradient as `higher` and TorchOpt; both are of the `bench` extra, so these may be skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from benchmarks.meta_gradient_peers import higher_gradient, torch_func_gradient, torchopt_gradient
from metarepair.inner import Batch, FunctionalNet, InnerRule
from metarepair.meta_gradient import TaskBatch, task_gradient
from metarepair.vectors import flatten

Peer = Callable[..., Tensor]
PEERS: dict[str, Peer] = {
    "higher": higher_gradient,
    "torchopt": torchopt_gradient,
    "torch": torch_func_gradient,
}


def smooth() -> nn.Module:
    body = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.AvgPool2d(5), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(288, 5))


NETS: dict[str, Callable[[], nn.Module]] = {
    "smooth": smooth,
    "convnext": lambda: timm.create_model("convnext_atto", num_classes=5),
}


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_the_gradient_is_the_peers(name: str, net: str, dtype: torch.dtype, bound: float) -> None:
    if name != "torch":
        pytest.importorskip(name)
    torch.manual_seed(0)
    module = NETS[net]().to(dtype)
    parts: list[Any] = [
        Batch(images_BCHW=torch.randn(10, 3, 32, 32, dtype=dtype), labels_B=torch.arange(10) % 5)
        for _ in range(2)
    ]
    task = TaskBatch(support=parts[0], query=parts[1])
    functional = FunctionalNet(module, InnerRule(steps=3, rate=0.02, batch_norm="batch"))
    found = task_gradient(functional, functional.parameters(), functional.buffers(), task)
    ours_P, theirs_P = flatten(found.gradient), PEERS[name](module, task, steps=3, rate=0.02)
    assert float((ours_P - theirs_P).norm() / theirs_P.norm()) < bound

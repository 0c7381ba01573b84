"""A net with activation checkpointing has the gradients of the plain net."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import metarepair.models  # noqa: F401  registers convnext_cifar
from metarepair.engine.inner import FunctionalNet, adapt
from metarepair.engine.meta_gradient import task_gradient
from metarepair.engine.types import Batch, InnerRule, TaskBatch
from metarepair.engine.vectors import flatten
from tasks.errors import ConfigError

DOUBLE: Any = {"dtype": torch.float64}
MODES = ("frozen", "adapt", "batch")


class Net(nn.Module):
    """Batch norm, a replaced activation and dropout, with or without a checkpoint."""

    def __init__(self, *, checkpointed: bool, reentrant: bool = False) -> None:
        super().__init__()
        self.checkpointed, self.reentrant = checkpointed, reentrant
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.middle = nn.Sequential(
            nn.Conv2d(4, 4, 3),
            nn.BatchNorm2d(4),
            nn.Hardsigmoid(),
            nn.Conv2d(4, 6, 3),
            nn.Dropout(0.3),
            nn.Tanh(),
        )
        self.last = nn.Linear(6, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = torch.tanh(self.first(x_BCHW))
        if self.checkpointed:
            x_BCHW = checkpoint(self.middle, x_BCHW, use_reentrant=self.reentrant)
        else:
            x_BCHW = self.middle(x_BCHW)
        return self.last(x_BCHW.mean((2, 3)))  # type: ignore[no-any-return]


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 3, 8, 8, generator=generator, **DOUBLE)
    return Batch(images_BCHW=images, labels_B=torch.randint(0, 3, (6,), generator=generator), seed=seed)


TASK = TaskBatch(support=batch(1), query=batch(2), clean=batch(3))


def net_of(mode: Any, *, steps: int = 3, dropout: bool = False, **options: Any) -> FunctionalNet:
    torch.manual_seed(0)
    rule = InnerRule(steps=steps, rate=0.5, batch_norm=mode, dropout=dropout)
    return FunctionalNet(Net(**options).double(), rule)


@pytest.mark.parametrize("memory", ["graph", "recompute", 1])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("steps", "dropout"), [(1, False), (3, False), (3, True)])
def test_the_meta_gradient_is_that_of_the_plain_net(
    memory: Any, mode: str, steps: int, dropout: bool
) -> None:
    plain, ours = (net_of(mode, steps=steps, dropout=dropout, checkpointed=c) for c in (False, True))
    expected, found = (
        flatten(task_gradient(net, net.parameters(), net.buffers(), TASK, memory=memory).gradient)
        for net in (plain, ours)
    )
    assert float((found - expected).norm() / expected.norm()) < 1e-12
    assert not any(module.training for module in ours.module.modules())


@pytest.mark.parametrize("mode", MODES)
def test_adaptation_moves_parameters_and_statistics_as_in_the_plain_net(mode: str) -> None:
    plain, ours = (net_of(mode, checkpointed=c) for c in (False, True))
    expected, found = (adapt(net, net.parameters(), net.buffers(), TASK.support) for net in (plain, ours))
    for ours_state, plain_state in zip(found, expected, strict=True):
        for name, value in plain_state.items():
            torch.testing.assert_close(ours_state[name], value, rtol=1e-12, atol=1e-14)
    moved = any(not torch.equal(v, plain.buffers()[k]) for k, v in found[1].items())
    assert moved == (mode == "adapt")


def test_the_meta_gradient_of_a_timm_net_does_not_depend_on_its_checkpointing() -> None:
    def gradient(*, checkpointed: bool) -> Tensor:
        torch.manual_seed(0)
        module = timm.create_model("convnext_cifar", num_classes=3).double()
        module.set_grad_checkpointing(checkpointed)
        net = FunctionalNet(module, InnerRule(steps=2, rate=0.03, batch_norm="frozen"))
        images = torch.nn.functional.interpolate(TASK.support.images_BCHW, (32, 32))
        support = Batch(images_BCHW=images, labels_B=TASK.support.labels_B)
        task = TaskBatch(support=support, query=support)
        return flatten(task_gradient(net, net.parameters(), net.buffers(), task, memory="graph").gradient)

    expected, found = gradient(checkpointed=False), gradient(checkpointed=True)
    assert float((found - expected).norm() / expected.norm()) < 1e-12


@pytest.mark.parametrize("order", ["first", "second"])
def test_a_reentrant_checkpoint_is_refused_with_torchs_own_message(order: Any) -> None:
    net = net_of("frozen", checkpointed=True, reentrant=True)
    with pytest.raises(ConfigError, match=r"cannot differentiate Net .*use_reentrant") as refused:
        task_gradient(net, net.parameters(), net.buffers(), TASK, order=order)
    assert "order: first" not in str(refused.value)  # first order would not help

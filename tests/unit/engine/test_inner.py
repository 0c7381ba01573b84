"""Test the inner loop: its update rules against torch.optim.SGD, batch norm, dropout and bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from metarepair.engine.adapted import adapted_names
from metarepair.engine.inner import FunctionalNet, adapt
from metarepair.engine.meta_gradient import task_gradient
from metarepair.engine.types import Batch, InnerRule, TaskBatch
from metarepair.engine.vectors import State, flatten
from metarepair.models.build import build_model
from tasks.errors import ConfigError


def net_of(module: nn.Module, **rule: Any) -> FunctionalNet:
    return FunctionalNet(module, InnerRule(**{"steps": 3, "rate": 0.1, "batch_norm": "frozen"} | rule))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean = torch.randn(4) * 0.2
    body = (nn.Conv2d(3, 4, 3, padding=1), norm, nn.Tanh(), nn.AvgPool2d(4))
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(16, 3)).double()


def batch(seed: int = 1, size: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64)
    return Batch(images_BCHW=images, labels_B=torch.arange(size) % 3, seed=seed)


def gap(a: State, b: State) -> float:
    return max(float((a[k] - b[k]).abs().max()) for k in a)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("parts", [("*",), ("head",)])
def test_the_update_rule_equals_torch_optim_sgd(
    momentum: float, decay: float, parts: tuple[str, ...]
) -> None:
    net = net_of(small(), momentum=momentum, weight_decay=decay, parts=parts)
    found, _ = adapt(net, net.parameters(), net.buffers(), batch())
    module = small().eval()
    moved = [p for k, p in module.named_parameters() if k in net.adapted]
    optimizer = torch.optim.SGD(moved, lr=0.1, momentum=momentum, weight_decay=decay)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(module(batch().images_BCHW), batch().labels_B).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert gap({k: v.detach() for k, v in module.named_parameters()}, found) < 1e-14


def test_factors_scale_the_rate_of_a_tensor_and_a_step() -> None:
    net = net_of(small(), steps=2, learned_rates=True)
    factors = net.rate_factors()
    factors["5.weight"] = torch.tensor([0.0, 2.0], dtype=torch.float64)
    start, support = net.parameters(), batch()
    once, _ = adapt(net_of(small(), steps=1), start, net.buffers(), support)
    once["5.weight"] = start["5.weight"]
    twice, _ = adapt(net_of(small(), steps=1), once, net.buffers(), support)
    twice["5.weight"] = once["5.weight"] + 2 * (twice["5.weight"] - once["5.weight"])
    assert gap(adapt(net, start, net.buffers(), support, factors)[0], twice) < 1e-14


def test_the_head_of_a_timm_net_is_its_classifier() -> None:
    module = build_model("resnet8_cifar", 10)
    assert adapted_names(module, ("head",)) == ("fc.weight", "fc.bias")
    assert adapted_names(module, ("*",)) == tuple(k for k, _ in module.named_parameters())


def test_parts_are_names_modules_and_patterns_in_the_modules_order() -> None:
    assert adapted_names(small(), ("5", "0.weight")) == ("0.weight", "5.weight", "5.bias")
    assert adapted_names(small(), ("*.bias",)) == ("0.bias", "1.bias", "5.bias")


def test_a_part_that_names_nothing_is_refused_with_near_names() -> None:
    with pytest.raises(ConfigError, match=r"'fcc' names no parameter of ResNet.*Near names: .*fc"):
        adapted_names(build_model("resnet8_cifar", 10), ("fcc",))


def test_adapt_moves_the_statistics_as_training_does() -> None:
    net = net_of(small(), steps=1, rate=1e-9, batch_norm="adapt", batch_norm_momentum=0.3)
    _, after = adapt(net, net.parameters(), net.buffers(), batch())
    module = small().train()
    module[1].momentum = 0.3
    module(batch().images_BCHW)
    assert gap({k: v for k, v in after.items() if "running" in k}, dict(module.named_buffers())) < 1e-14
    assert int(after["1.num_batches_tracked"]) == 1


@pytest.mark.parametrize("mode", ["frozen", "batch"])
def test_other_modes_leave_the_statistics(mode: str) -> None:
    net = net_of(small(), batch_norm=mode)
    _, after = adapt(net, net.parameters(), net.buffers(), batch())
    assert all(torch.equal(v, net.buffers()[k]) for k, v in after.items())


def query_loss(net: FunctionalNet, given: Batch, parameters: State | None = None) -> Tensor:
    with net.query(parameters or net.parameters(), net.buffers(), given) as found:
        return found.loss


@pytest.mark.parametrize("mode", ["frozen", "adapt"])
def test_the_logits_of_a_query_do_not_depend_on_its_batch(mode: str) -> None:
    net, whole = net_of(small(), batch_norm=mode), batch(size=12)
    losses = [
        query_loss(net, Batch(images_BCHW=whole.images_BCHW[i : i + 1], labels_B=whole.labels_B[i : i + 1]))
        for i in range(12)
    ]
    together = query_loss(net, whole)
    assert float(torch.stack(losses).mean()) == pytest.approx(float(together), rel=1e-12)


def dropping(**rule: Any) -> FunctionalNet:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.Dropout(0.5), nn.Linear(20, 3)).double()
    return net_of(module, dropout=True, **rule)


def test_dropout_masks_depend_on_the_task_and_the_step() -> None:
    net = dropping()

    def loss(seed: int, step: int) -> float:
        with net.support(net.parameters(), net.buffers(), batch_of(seed), step=step) as found:
            return float(found.loss)

    def batch_of(seed: int) -> Batch:
        return Batch(images_BCHW=batch().images_BCHW, labels_B=batch().labels_B, seed=seed)

    assert loss(1, 0) == loss(1, 0)
    assert len({loss(1, 0), loss(1, 1), loss(2, 0)}) == 3


def test_dropout_leaves_torchs_generator_and_the_module_as_they_were() -> None:
    net = dropping()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    adapt(net, net.parameters(), net.buffers(), batch())
    assert torch.equal(torch.rand(3), expected)
    assert not any(m.training for m in net.module.modules())


def test_queries_are_computed_without_dropout() -> None:
    on, off = dropping(), net_of(dropping().module)
    assert query_loss(on, batch()) == query_loss(off, batch(), on.parameters())


@pytest.mark.parametrize("memory", ["graph", "recompute"])
def test_bfloat16_keeps_float32_weights_and_the_gradients_direction(memory: Any) -> None:
    torch.manual_seed(0)
    module = build_model("resnet8_cifar", 10)
    parts = []
    for seed in (1, 2):
        images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        parts.append(Batch(images_BCHW=images, labels_B=torch.arange(20) % 10))

    def gradient(*, bf16: bool) -> Tensor:
        net = FunctionalNet(module, InnerRule(steps=3, rate=0.02, batch_norm="adapt"), bf16=bf16)
        task = TaskBatch(support=parts[0], query=parts[1])
        return flatten(task_gradient(net, net.parameters(), net.buffers(), task, memory=memory).gradient)

    low, full = gradient(bf16=True), gradient(bf16=False)
    assert low.dtype == torch.float32
    assert not torch.equal(low, full)
    assert float(torch.cosine_similarity(low, full, dim=0)) > 0.97

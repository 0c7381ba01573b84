"""Test the parameters and buffers that Tent and bn_adapt change, and that neither reads a label."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.load import parse_config
from metarepair.methods import get_method, method_settings
from metarepair.methods.base import MethodContext
from metarepair.methods.bn_adapt import adapt_statistics
from metarepair.methods.budget import Budget, parse_limit
from metarepair.methods.repaired import RepairedModel
from metarepair.methods.tent import entropy
from metarepair.models.build import DeployedModel, build_model, state_hash
from metarepair.repairs.stage import repair_fairly
from small import failures_of
from tasks.errors import ConfigError

CONFIG = parse_config({"name": "unit", "device": "cpu", "mining": {"experiences": ["fog"]}})


def net(norm: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = (nn.Conv2d(3, 4, 3, padding=1), norm, nn.ReLU(), nn.AvgPool2d(4), nn.Flatten())
        module = nn.Sequential(*body, nn.Linear(16, 3))
        with torch.no_grad():
            module[5].weight.mul_(4)  # confident enough for the entropy to fall
    return module.double().eval()


def deployed(module: nn.Module | None = None) -> DeployedModel:
    return DeployedModel(
        name="small",
        module=net(nn.BatchNorm2d(4)) if module is None else module,
        num_classes=3,
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.2, 0.3),
    )


def data(number: int = 40) -> RepairData:
    generator = np.random.default_rng(0)
    failures = failures_of(
        labels_N=generator.integers(3, size=number),
        predicted_N=generator.integers(3, size=number),
        images_NHWC=generator.integers(120, 256, size=(number, 8, 8, 3), dtype=np.uint8),
    )
    return RepairData(target="snow", learn=failures, validation=failures.take(np.arange(number // 4)))


def repaired(
    name: str, net: DeployedModel, given: RepairData, budget: Budget | None = None, **settings: Any
) -> RepairedModel:
    context = MethodContext(
        config=CONFIG, seed=2, settings=method_settings(name, settings), budget=budget or Budget()
    )
    return repair_fairly(get_method(name), net, given, context)


def changed(net: DeployedModel, model: RepairedModel) -> set[str]:
    before = {**dict(net.module.named_parameters()), **dict(net.module.named_buffers())}
    assert before.keys() == model.state().keys()
    return {k for k, v in model.state().items() if not torch.equal(v, before[k])}


@pytest.mark.parametrize(
    ("norm", "want"),
    [
        (
            nn.BatchNorm2d(4),
            {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"},
        ),
        (nn.BatchNorm2d(4, track_running_stats=False), {"1.weight", "1.bias"}),
        (nn.GroupNorm(2, 4), {"1.weight", "1.bias"}),
        (nn.LayerNorm(8), {"1.weight", "1.bias"}),
    ],
)
def test_tent_changes_scales_shifts_and_statistics_of_norms_and_nothing_else(
    norm: nn.Module, want: set[str]
) -> None:
    own = deployed(net(norm))
    assert changed(own, repaired("tent", own, data(), batch_size=8)) == want


def mean_entropy(net: DeployedModel, model: RepairedModel, given: RepairData) -> float:
    filled = model.fill(net.module)
    with torch.no_grad():
        return float(entropy(filled(net.normalise(given.learn.images_NHWC[:]))))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.LayerNorm(8), nn.GroupNorm(1, 4)])
def test_tent_lowers_the_entropy_of_its_images(norm: nn.Module) -> None:
    own, given = deployed(net(norm)), data()
    start = mean_entropy(own, repaired("bn_adapt", own, given), given)  # with the images' own statistics
    end = mean_entropy(own, repaired("tent", own, given, epochs=15, batch_size=20, rate=0.02), given)
    assert end < 0.8 * start


def test_entropy_equals_its_definition() -> None:
    logits = torch.randn(7, 5, generator=torch.manual_seed(0), dtype=torch.float64)
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    assert float(entropy(logits)) == pytest.approx(float(-(p * np.log(p)).sum(1).mean()))
    assert float(entropy(torch.zeros(2, 8))) == pytest.approx(np.log(8))


@pytest.mark.parametrize("name", ["tent", "bn_adapt"])
def test_neither_reads_a_label(name: str) -> None:
    """Call the methods with labels, which the stage would remove: true and other labels give the same bits."""
    given = data()
    other = replace(
        given.learn, labels_N=given.learn.labels_N[::-1].copy() * 7, predicted_N=given.learn.labels_N
    )
    found = []
    for learn in (given.learn, other):
        context = MethodContext(config=CONFIG, seed=2, settings=method_settings(name, {}))
        seen = replace(given, learn=learn, validation=replace(given.validation, labels_N=learn.labels_N[:10]))
        found.append(state_hash(get_method(name).repair(deployed(), seen, context).state()))
    assert found[0] == found[1]
    assert found[0] == state_hash(repaired(name, deployed(), given).state())


@pytest.mark.parametrize("name", ["tent", "bn_adapt"])
def test_other_images_give_another_result(name: str) -> None:
    given = data()
    darker = replace(given.learn, images_NHWC=given.learn.images_NHWC[:] // 2)
    found = [
        state_hash(repaired(name, deployed(), replace(given, learn=learn)).state())
        for learn in (given.learn, darker)
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize("module", [nn.Identity(), nn.BatchNorm2d(4, affine=False)])
def test_tent_refuses_a_dnn_without_norms_to_change(module: nn.Module) -> None:
    with pytest.raises(
        ConfigError, match=r"no norm of this DNN has any with requires_grad=True\. Leave tent out"
    ):
        get_method("tent").check(net(module), method_settings("tent", {}))
    with pytest.raises(ConfigError, match="no norm of this DNN has any"):
        repaired("tent", deployed(net(module)), data())


def test_tent_takes_one_step_per_batch_and_keeps_its_budget() -> None:
    whole = repaired("tent", deployed(), data(), epochs=3, batch_size=16)
    assert (whole.gradient_steps, whole.images_seen) == (9, 3 * 3 * 16)
    cut = repaired("tent", deployed(), data(), Budget(parse_limit("4steps")), epochs=3, batch_size=16)
    assert (cut.gradient_steps, cut.images_seen) == (4, 64)


def test_tent_has_the_same_bits_for_the_same_seed() -> None:
    first, again = (repaired("tent", deployed(), data(), batch_size=16) for _ in range(2))
    assert state_hash(first.state()) == state_hash(again.state())


def test_tent_steps_are_adams_on_the_entropy_of_batches_with_their_own_statistics() -> None:
    own, given = deployed(), data(12)
    found = repaired("tent", own, given, epochs=2, batch_size=12, rate=0.01)
    module = net(nn.BatchNorm2d(4))
    module[1].train()
    optimizer = torch.optim.Adam(module[1].parameters(), lr=0.01)
    for _ in range(2):  # one batch of all images: their order does not matter
        optimizer.zero_grad()
        p_BK = module(own.normalise(given.learn.images_NHWC[:])).softmax(1)
        (-(p_BK * p_BK.log()).sum(1).mean()).backward()
        optimizer.step()
    torch.testing.assert_close(found.parameters["1.weight"], module[1].weight.detach())
    torch.testing.assert_close(found.parameters["1.bias"], module[1].bias.detach())


def test_tent_works_on_timms_norms() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = deployed(build_model("convnext_cifar", 3).eval())
    small = data(10).learn
    given = replace(data(10), learn=replace(small, images_NHWC=small.images_NHWC.repeat(4, 1).repeat(4, 2)))
    norms = {k for k, m in own.module.named_modules() if "Norm" in type(m).__name__}
    found = changed(own, repaired("tent", own, given, epochs=1))
    assert found
    assert {name.rpartition(".")[0] for name in found} <= norms


@pytest.mark.parametrize("batch_size", [40, 10, 16])
def test_bn_adapt_stores_the_means_and_variances_of_the_images(batch_size: int) -> None:
    """Compare the first norm with the closed form: a mean over batches, weighted by size, with a short last one."""
    own, images = deployed(), data().learn.images_NHWC
    conv = own.module[0]  # type: ignore[index]
    with torch.no_grad():
        x_NCHW = conv(own.normalise(images[:]))
    assert adapt_statistics(own, images, batch_size=batch_size)
    norm = own.module[1]  # type: ignore[index]
    torch.testing.assert_close(norm.running_mean, x_NCHW.mean((0, 2, 3)))
    parts: list[Tensor] = [p.var((0, 2, 3)) * len(p) for p in x_NCHW.split(batch_size)]
    torch.testing.assert_close(norm.running_var, torch.stack(parts).sum(0) / len(x_NCHW))
    assert norm.momentum == 0.1
    assert not norm.training


def test_bn_adapt_changes_statistics_alone() -> None:
    own = deployed()
    found = repaired("bn_adapt", own, data())
    assert changed(own, found) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert (found.images_seen, found.gradient_steps, found.notes) == (40, 0, ())


@pytest.mark.parametrize(
    "norm", [nn.Identity(), nn.LayerNorm(8), nn.BatchNorm2d(4, track_running_stats=False)]
)
def test_bn_adapt_reports_when_there_is_nothing_to_adapt(norm: nn.Module) -> None:
    own = deployed(net(norm))
    found = repaired("bn_adapt", own, data())
    assert changed(own, found) == set()
    assert found.images_seen == 0
    assert found.notes == ("this DNN has no batch-norm statistics: nothing to adapt",)

"""Test ROID: its loss, the weights of images, their views, and the pull back to the deployed weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarepair import repair
from metarepair.adaptation.repair_data import RepairData
from metarepair.config.load import parse_config
from metarepair.methods import get_method, method_settings
from metarepair.methods.base import MethodContext
from metarepair.methods.budget import Budget, parse_limit
from metarepair.methods.repaired import RepairedModel
from metarepair.methods.roid import (
    image_weights,
    soft_likelihood_ratio,
    symmetric_cross_entropy,
    view_of,
    viewed_rows,
)
from metarepair.methods.tent import entropies
from metarepair.models.build import DeployedModel, state_hash
from metarepair.repairs.stage import repair_fairly
from small import deployed_of, failures_of, pixels, small_net
from tasks.errors import ConfigError, DataError
from tasks.keys import keyed_generator

CONFIG = parse_config({"name": "unit", "device": "cpu", "mining": {"experiences": ["fog"]}})
STATISTICS = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def net(norm: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm, nn.ReLU(), nn.AvgPool2d(4), nn.Flatten())
        module.append(nn.Linear(16, 3))
        with torch.no_grad():
            module[5].weight.mul_(4)  # predictions of several classes, and of different certainty
    return module.double().eval()


def deployed(norm: nn.Module | None = None) -> DeployedModel:
    return deployed_of(net(norm or nn.BatchNorm2d(4)))


def data(number: int = 40) -> RepairData:
    failures = failures_of(np.arange(number) % 3, pixels(number))
    return RepairData(target="snow", learn=failures, validation=failures.take(np.arange(number // 4)))


def repaired(
    dnn: DeployedModel | None = None,
    given: RepairData | None = None,
    *,
    limit: str | None = None,
    seed: int = 2,
    **settings: Any,
) -> RepairedModel:
    context = MethodContext(
        config=CONFIG,
        seed=seed,
        settings=method_settings("roid", {"rate": 0.01, "epochs": 3} | settings),
        budget=Budget(None if limit is None else parse_limit(limit)),
    )
    return repair_fairly(get_method("roid"), dnn or deployed(), given or data(), context)


def changed(dnn: DeployedModel, model: RepairedModel) -> set[str]:
    before = {**dict(dnn.module.named_parameters()), **dict(dnn.module.named_buffers())}
    return {k for k, v in model.state().items() if not torch.equal(v, before[k])}


def distance(model: RepairedModel) -> float:
    before = dict(deployed().module.named_parameters())
    return sum(float((v - before[k].detach()).norm()) for k, v in model.parameters.items())


def logits_of(*probabilities: tuple[float, ...]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_the_soft_likelihood_ratio_equals_a_value_by_hand() -> None:
    found = soft_likelihood_ratio(logits_of((0.8, 0.2), (0.9999, 0.0001)))
    odds = 0.8 * math.log(0.8 / 0.2 + 1e-5) + 0.2 * math.log(0.2 / 0.8 + 1e-5)
    clipped = 0.99 * math.log(0.99 / 0.01 + 1e-5) + 0.0001 * math.log(0.0001 / 0.9999 + 1e-5)
    assert found.tolist() == pytest.approx([-odds, -clipped])
    assert found[0].item() == pytest.approx(-0.6 * math.log(4), abs=1e-4)


def test_the_soft_likelihood_ratio_still_teaches_where_the_entropy_no_longer_does() -> None:
    sizes = []
    for loss in (soft_likelihood_ratio, entropies):
        logits = logits_of((0.98, 0.01, 0.01)).requires_grad_()
        sizes.append(float(torch.autograd.grad(loss(logits).sum(), logits)[0].norm()))
    assert sizes[0] > sizes[1]
    certain = torch.tensor([[800.0, 0, 0]], requires_grad=True)  # probabilities of exactly 1 and 0
    assert torch.autograd.grad(soft_likelihood_ratio(certain).sum(), certain)[0].isfinite().all()


def test_an_image_counts_by_its_diversity_times_its_certainty() -> None:
    p = np.array([(0.9, 0.06, 0.04), (0.05, 0.9, 0.05), (0.15, 0.15, 0.7), (0.1, 0.5, 0.4)])
    mean = np.array((0.8, 0.1, 0.1))
    found, following = image_weights(torch.from_numpy(p).log(), torch.from_numpy(mean), 1 / 3)
    diversity = 1 - p @ mean / np.linalg.norm(p, axis=1) / np.linalg.norm(mean)
    diversity = (diversity - diversity.min()) / (diversity.max() - diversity.min())
    certainty = (p * np.log(p)).sum(1)
    certainty = (certainty - certainty.min()) / (certainty.max() - certainty.min())
    wanted = np.where(diversity >= diversity.mean(), np.exp(3 * diversity * certainty), 0)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)
    np.testing.assert_allclose(following.numpy(), 0.9 * mean + 0.1 * p.mean(0))
    assert found[0] == 0  # certain, but like the mean
    assert found[1] > 10  # certain and new
    assert found[3] == 1  # new, but the least certain


def test_the_mean_prediction_starts_uniform_and_equal_images_count_alike() -> None:
    p = (0.5, 0.3, 0.2)
    found, following = image_weights(logits_of(p, p, p), None, 1 / 3)
    assert found.tolist() == [1, 1, 1]
    np.testing.assert_allclose(following.numpy(), 0.9 / 3 + 0.1 * np.array(p))
    assert image_weights(logits_of(p), None, 1 / 3)[0].tolist() == [1]


def test_views_are_made_of_the_images_that_count() -> None:
    assert viewed_rows(torch.tensor([0.0, 2, 0, 1])).tolist() == [1, 3]
    assert viewed_rows(torch.tensor([0.0, 2, 0])).tolist() == [0, 1, 2]  # a batch norm may need two
    assert viewed_rows(torch.tensor([1.0])).tolist() == [0]


def test_the_symmetric_cross_entropy_equals_a_value_by_hand() -> None:
    p, q = (0.7, 0.3), (0.4, 0.6)
    one = -sum(a * math.log(b) for a, b in zip(p, q, strict=True))
    other = -sum(b * math.log(a) for a, b in zip(p, q, strict=True))
    assert float(symmetric_cross_entropy(logits_of(p), logits_of(q))) == pytest.approx((one + other) / 2)


def plain(number: int, channels: int = 3) -> Tensor:
    """Images of one colour each, normalised as `deployed_of` does."""
    colours = np.random.default_rng(3).uniform(0.2, 0.8, (number, channels, 1, 1))
    return torch.from_numpy((np.broadcast_to(colours, (number, channels, 8, 8)) - 0.5) / 0.25)


def test_a_view_changes_colours_of_pixels_only() -> None:
    dnn, x = deployed(), plain(4)
    for key in range(20):
        kept = view_of(dnn, x, keyed_generator("unit", key), pixels=False)
        torch.testing.assert_close(kept, x)  # the reflected edges have the colour, too
        other = view_of(dnn, x, keyed_generator("unit", key), pixels=True)
        assert not torch.allclose(other, x, atol=1e-3)
        assert float((other * 0.25 + 0.5).min()) >= -1e-9
        assert float((other * 0.25 + 0.5).max()) <= 1 + 1e-9
    five = plain(4, channels=5)
    torch.testing.assert_close(view_of(dnn, five, keyed_generator("unit", 0), pixels=True), five)


def test_a_view_moves_and_mirrors_by_its_generator() -> None:
    dnn = deployed()
    x = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    x[..., :4] = 1  # a bright left quarter
    views = [view_of(dnn, x, keyed_generator("unit", key), pixels=False) for key in range(20)]
    left = [float(view[..., :8].mean()) > float(view[..., 8:].mean()) for view in views]
    assert 4 < sum(left) < 16
    assert all(view.shape == x.shape for view in views)
    assert not any(torch.equal(view, x) or torch.equal(view, x.flip(3)) for view in views)
    assert torch.equal(views[0], view_of(dnn, x, keyed_generator("unit", 0), pixels=False))


@pytest.mark.parametrize("share", [0.0, 1.0, 4.0])
def test_steps_are_adams_on_the_weighted_losses_and_end_nearer_to_the_deployed_weights(share: float) -> None:
    """Compare three steps on a batch of all images with the algorithm written out; share: of the consistency."""
    dnn, given = deployed(), data(12)
    found = repaired(dnn, given, batch_size=12, deployed_share=0.1, consistency=share)
    module = net(nn.BatchNorm2d(4))
    norm = module[1]
    norm.train()
    start = [p.detach().clone() for p in norm.parameters()]
    optimizer = torch.optim.Adam(norm.parameters(), lr=0.01)
    mean_K: Tensor | None = None
    for step in range(3):
        order = keyed_generator("method-order", 2, 0, step).permutation(12)
        x = dnn.normalise(given.learn.images_NHWC[order])
        logits = module(x)
        weight, mean_K = image_weights(logits.detach(), mean_K, 1 / 3)
        counts = weight > 0
        assert 1 < int(counts.sum()) < 12
        view = module(view_of(dnn, x[counts], keyed_generator("roid-view", 2, step), pixels=True))
        p, q = logits[counts].softmax(1), view.softmax(1)
        consistency = -0.5 * (p * q.log() + q * p.log()).sum(1)
        loss = (weight[counts] * (soft_likelihood_ratio(logits[counts]) + share * consistency)).sum() / 12
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for parameter, before in zip(norm.parameters(), start, strict=True):
                parameter.copy_(0.9 * parameter + 0.1 * before)
    torch.testing.assert_close(found.parameters["1.weight"], norm.weight.detach())
    torch.testing.assert_close(found.parameters["1.bias"], norm.bias.detach())


def test_the_deployed_weights_pull_back() -> None:
    free, held, back = (distance(repaired(deployed_share=share)) for share in (0.0, 0.3, 1.0))
    assert free > held > back
    assert back == 0


def test_every_pass_is_counted_and_a_budget_ends_the_repair() -> None:
    whole = repaired(epochs=2, batch_size=20, consistency=0.0)
    assert (whole.gradient_steps, whole.images_seen) == (4, 80)
    viewed = repaired(epochs=2, batch_size=20)
    assert viewed.gradient_steps == 4
    assert 80 < viewed.images_seen < 160
    assert repaired(epochs=9, batch_size=20, limit="3steps").gradient_steps == 3


@pytest.mark.parametrize(
    ("norm", "statistics"),
    [(nn.BatchNorm2d(4), STATISTICS), (nn.GroupNorm(2, 4), set()), (nn.LayerNorm(8), set())],
)
def test_scales_shifts_and_statistics_change_and_nothing_else(norm: nn.Module, statistics: set[str]) -> None:
    dnn = deployed(norm)
    assert changed(dnn, repaired(dnn, batch_size=8)) == {"1.weight", "1.bias"} | statistics
    norm.weight.requires_grad_(False)
    dnn = deployed(norm)
    assert changed(dnn, repaired(dnn, batch_size=8)) == {"1.bias"} | statistics


def test_no_label_is_read() -> None:
    """Call the method with labels, which the stage would remove: true and other labels give the same bits."""
    given, found = data(), []
    for labels in (given.learn.labels_N, given.learn.labels_N[::-1].copy() * 7):
        context = MethodContext(config=CONFIG, seed=2, settings=method_settings("roid", {"epochs": 3}))
        seen = replace(given, learn=replace(given.learn, labels_N=labels, predicted_N=labels))
        found.append(state_hash(get_method("roid").repair(deployed(), seen, context).state()))
    assert found[0] == found[1]


def test_the_same_seed_gives_the_same_bits_and_another_one_other_views() -> None:
    torch.manual_seed(5)
    first = repaired(seed=2)
    torch.manual_seed(6)
    assert state_hash(first.state()) == state_hash(repaired(seed=2).state())
    other = repaired(seed=3)
    assert not torch.allclose(first.parameters["1.weight"], other.parameters["1.weight"], atol=1e-6)


def test_floats_that_are_normalised_already_are_repaired() -> None:
    images = torch.from_numpy(pixels(24)).permute(0, 3, 1, 2).float() / 127.5 - 1
    module = net(nn.BatchNorm2d(4)).float()
    labels = (module(images).argmax(1) + 1) % 3
    found = repair(module, (images, labels), method="roid").module
    assert not torch.equal(found[1].weight, module[1].weight)
    assert torch.equal(found[0].weight, module[0].weight)


@pytest.mark.parametrize("module", [nn.Identity(), nn.BatchNorm2d(4, affine=False)])
def test_a_dnn_without_norms_to_train_is_refused(module: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"no norm of this DNN has any with requires_grad.*Leave roid out"):
        get_method("roid").check(net(module), method_settings("roid", {}))


@pytest.mark.parametrize("number", [2, 3])
def test_two_images_are_enough_for_a_norm_of_one_value_an_image_and_one_is_refused(number: int) -> None:
    dnn = deployed_of(small_net(flat=True))
    assert repaired(dnn, data(number)).first_not_finite() is None
    with pytest.raises(DataError, match=r"roid used a batch of one image.*Collect more failures"):
        repaired(dnn, data(1))

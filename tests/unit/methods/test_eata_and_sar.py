"""Test EATA and SAR: the images that count, what holds the weights, and the way back."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.load import parse_config
from metarepair.data.clean_images import CleanImages
from metarepair.methods import get_method, method_settings, sar
from metarepair.methods.base import MethodContext
from metarepair.methods.budget import Budget, parse_limit
from metarepair.methods.eata import reliable_loss
from metarepair.methods.repaired import RepairedModel
from metarepair.methods.tent import affine_of, entropies, own_batch
from metarepair.models.build import DeployedModel
from metarepair.repairs.stage import repair_fairly
from small import failures_of
from tasks.errors import ConfigError

CONFIG = parse_config({"name": "unit", "device": "cpu", "mining": {"experiences": ["fog"]}})
CLASSES = 3


def net(scale: float = 4.0) -> nn.Module:
    """Two convolutions with batch norm; `scale` makes predictions certain."""
    torch.manual_seed(0)
    body = (
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
    )
    module = nn.Sequential(*body, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, CLASSES))
    with torch.no_grad():
        module[8].weight.mul_(scale)
    return module.double().eval()


def deployed(scale: float = 4.0) -> DeployedModel:
    return DeployedModel(name="a", module=net(scale), num_classes=CLASSES, mean=(0.5,) * 3, std=(0.25,) * 3)


def data(count: int = 40) -> RepairData:
    generator = np.random.default_rng(0)
    failures = failures_of(
        labels_N=generator.integers(CLASSES, size=count),
        images_NHWC=generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8),
    )
    clean = CleanImages(
        images_NHWC=generator.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8),
        labels_N=np.arange(60) % CLASSES,
    )
    return RepairData(target="snow", learn=failures, validation=failures.take(np.arange(8)), clean=clean)


def repaired(
    name: str, dnn: DeployedModel | None = None, *, limit: str | None = None, **settings: Any
) -> RepairedModel:
    context = MethodContext(
        config=CONFIG,
        seed=2,
        settings=method_settings(name, {"batch_size": 20, "rate": 0.05} | settings),
        budget=Budget(None if limit is None else parse_limit(limit)),
    )
    return repair_fairly(get_method(name), dnn or deployed(), data(), context)


def moved(model: RepairedModel, dnn: DeployedModel | None = None) -> dict[str, float]:
    before = dict((dnn or deployed()).module.named_parameters())
    return {k: float((v - before[k].detach()).norm()) for k, v in model.parameters.items()}


@pytest.mark.parametrize("name", ["eata", "sar"])
def test_only_norms_change_and_the_entropy_falls(name: str) -> None:
    settings = {"margin": 1.0} | ({"similarity": 1.0} if name == "eata" else {"reset": 0.0, "kept": 0.5})
    model = repaired(name, **settings)
    changed = {key for key, distance in moved(model).items() if distance}
    assert changed == (
        {"1.weight", "1.bias", "4.weight", "4.bias"} if name == "eata" else {"1.weight", "1.bias"}
    )
    dnn = deployed()
    x = dnn.normalise(data().learn.images_NHWC)
    found = []
    for parameters in (dict(dnn.module.named_parameters()), model.parameters):
        module = net()
        module.load_state_dict({**module.state_dict(), **parameters})
        with own_batch(module), torch.no_grad():
            found.append(float(entropies(module(x)).mean()))
    assert found[1] < found[0]


@pytest.mark.parametrize("name", ["eata", "sar"])
def test_uncertain_images_do_not_count(name: str) -> None:
    dnn = deployed(scale=1e-3)  # predictions near uniform: entropy near ln K
    model = repaired(name, dnn, margin=0.9)
    assert not any(moved(model, dnn).values())
    assert model.gradient_steps == 0
    assert model.images_seen > 0


def test_an_image_counts_by_its_certainty_and_novelty() -> None:
    logits = torch.tensor([[4.0, 0, 0], [2.0, 0, 0], [0.1, 0, 0]], dtype=torch.float64, requires_grad=True)
    highest = 0.9 * math.log(3)
    loss, mean = reliable_loss(logits, None, margin=0.9, similarity=0.4)
    entropy = entropies(logits)
    kept = [row for row in range(3) if float(entropy[row].detach()) < highest]
    assert kept == [0, 1]
    wanted = torch.stack([(highest - entropy[row].detach()).exp() * entropy[row] for row in kept]).mean()
    assert loss is not None
    torch.testing.assert_close(loss, wanted)
    assert mean is not None
    torch.testing.assert_close(mean, logits[:2].softmax(1).mean(0).detach())
    again, same = reliable_loss(logits, mean, margin=0.9, similarity=0.4)  # like the mean: redundant
    assert again is None
    assert same is mean
    other = torch.tensor([[0.0, 4.0, 0]], dtype=torch.float64)
    new, following = reliable_loss(other, mean, margin=0.9, similarity=0.4)
    assert new is not None
    torch.testing.assert_close(following, 0.9 * mean + 0.1 * other.softmax(1)[0])


def test_the_penalty_holds_what_clean_images_need() -> None:
    free = repaired("eata", margin=1.0, similarity=1.0, penalty=0.0)
    held = repaired("eata", margin=1.0, similarity=1.0, penalty=5.0)
    assert sum(moved(held).values()) < sum(moved(free).values())


def test_the_fisher_information_is_the_mean_squared_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    method, dnn, given = get_method("eata"), deployed(), data()
    affine = affine_of(dnn.module)
    context = MethodContext(config=CONFIG, seed=2, settings=method_settings("eata", {"clean_images": 30}))
    found = method._fisher(dnn, affine, given, context)
    assert given.clean is not None
    from metarepair.methods import eata
    from tasks.keys import keyed_generator

    drawn = given.clean.sample(30, keyed_generator("eata-clean", 2))
    assert len(drawn) == 30
    assert eata.FISHER_BATCH == 64
    with own_batch(dnn.module):
        logits = dnn.module(dnn.normalise(drawn.images_NHWC))
    wanted = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), affine)
    for own, gradient in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, gradient**2)


def step(radius: float) -> tuple[Tensor, Tensor]:
    """Take one step of SAR; return the weights before and after it."""
    module, x = net(), deployed().normalise(data().learn.images_NHWC)
    trained = affine_of(module)
    before = torch.cat([p.detach().flatten().clone() for p in trained])
    optimizer = torch.optim.SGD(trained, lr=0.1)
    assert sar._step(module, x, trained, optimizer, highest=9.0, radius=radius) is not None
    return before, torch.cat([p.detach().flatten() for p in trained])


def test_a_step_goes_by_the_gradient_where_the_entropy_is_highest_nearby() -> None:
    def gradient_at(change: Tensor | None) -> Tensor:
        module, x = net(), deployed().normalise(data().learn.images_NHWC)
        trained = affine_of(module)
        if change is not None:
            with torch.no_grad():
                for parameter, part in zip(trained, change.split([p.numel() for p in trained]), strict=True):
                    parameter += part.view_as(parameter)
        with own_batch(module):
            loss = entropies(module(x)).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])

    plain = gradient_at(None)
    for radius in (0.0, 0.3):
        before, after = step(radius)
        wanted = before - 0.1 * gradient_at(radius * plain / plain.norm())
        torch.testing.assert_close(after, wanted)
    assert not torch.allclose(step(0.0)[1], step(0.3)[1])


def test_the_deployed_weights_come_back_when_the_entropy_nears_zero() -> None:
    model = repaired("sar", margin=1.0, reset=10.0)  # always below
    assert not any(moved(model).values())
    assert "were restored" in model.notes[0]
    assert not repaired("sar", margin=1.0, reset=0.0).notes


def test_the_last_norms_are_kept() -> None:
    assert {k for k, d in moved(repaired("sar", margin=1.0, reset=0.0, kept=0.0)).items() if d} == {
        "1.weight", "1.bias", "4.weight", "4.bias",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"Lower methods\.sar\.kept"):
        repaired("sar", kept=1.0)


@pytest.mark.parametrize("name", ["eata", "sar"])
def test_a_budget_ends_it_and_a_dnn_without_norms_is_refused(name: str) -> None:
    settings: dict[str, Any] = {"margin": 1.0} | ({"similarity": 1.0} if name == "eata" else {"reset": 0.0})
    assert repaired(name, limit="3steps", **settings).gradient_steps == 3
    plain = replace(deployed(), module=nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)).double())
    with pytest.raises(ConfigError, match="no norm of this DNN"):
        repaired(name, plain)

"""Check clean images in supports and scores, and the interpolation with the deployed weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from metarepair.adaptation.choice import choose, interpolated, score
from metarepair.adaptation.meta_test import Step, start_of, walk
from metarepair.adaptation.repair_data import RepairData
from metarepair.config.repair import RepairConfig
from metarepair.data.batches import support_batch
from metarepair.data.clean_images import CleanImages
from metarepair.methods import Budget, Limit, MethodContext, get_method
from metarepair.models.build import DeployedModel
from metarepair.repairs.stage import repair_fairly
from small import deployed_of, failures_of
from tasks.errors import ConfigError
from tasks.keys import keyed_generator
from tasks.records import Failures

CLASSES = 3


def failures(count: int, *, light: int) -> Failures:
    generator = np.random.default_rng(light)
    labels = np.arange(count) % CLASSES
    images = generator.integers(0, 60, (count, 8, 8, 3)).astype(np.uint8) + np.uint8(light)
    return failures_of(labels, images, corruption="fog")


def clean_of(count: int) -> CleanImages:
    images = np.arange(count, dtype=np.int64)[:, None, None, None] * np.ones((1, 8, 8, 3), np.int64)
    return CleanImages(images_NHWC=(images % 256).astype(np.uint8), labels_N=np.arange(count) % CLASSES)


@pytest.fixture
def deployed() -> DeployedModel:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 36, CLASSES))
    return deployed_of(module.double().eval())


@pytest.fixture
def data() -> RepairData:
    return RepairData(
        target="fog",
        learn=failures(30, light=10),
        validation=failures(12, light=11),
        clean=clean_of(200),
    )


def config_of(**changes: dict[str, object]) -> RepairConfig:
    values: dict[str, dict[str, object]] = {
        "task": {"shots": 2},
        "inner": {"steps": 2, "rate": 0.05},
        "repair": {"episodes": 2, "tasks": 2, "rates": [0.05]},
    }
    for key, change in changes.items():
        values[key] = values[key] | change
    return RepairConfig.model_validate(values)


def test_held_out_images_are_never_sampled_and_all_others_are() -> None:
    clean = clean_of(203)
    held_out = set(clean.held_out_rows.tolist())
    assert len(held_out) == 20
    drawn = clean.sample(1000, keyed_generator("test"))
    images, labels = drawn.images_NHWC, drawn.labels_N
    assert sorted(images[:, 0, 0, 0].tolist()) == sorted(set(range(203)) - held_out)
    assert (labels == images[:, 0, 0, 0] % CLASSES).all()
    some = clean.sample(5, keyed_generator("test")).images_NHWC
    assert len(set(some[:, 0, 0, 0].tolist())) == 5


def test_a_support_has_its_failures_first_and_then_clean_images(
    deployed: DeployedModel, data: RepairData
) -> None:
    rows = np.array([3, 1, 2])
    batch = support_batch(deployed, data.learn, rows, data.clean, count=4, generator=keyed_generator("test"))
    assert len(batch) == 7
    assert batch.labels_B[:3].tolist() == data.learn.labels_N[rows].tolist()
    alone = support_batch(deployed, data.learn, rows, None, count=0, generator=keyed_generator("test"))
    assert torch.equal(batch.images_BCHW[:3], alone.images_BCHW)
    with pytest.raises(ConfigError, match="clean_support=4 needs clean"):
        support_batch(deployed, data.learn, rows, None, count=4, generator=keyed_generator("test"))


def test_clean_images_in_the_support_change_the_repair_only_if_there_are_any(
    deployed: DeployedModel, data: RepairData
) -> None:
    def end(config: RepairConfig, given: RepairData) -> Step:
        return list(walk(deployed, start_of(deployed), given, config, seed=0, rate=0.05, episodes=1))[-1]

    without, with_clean = end(config_of(), data), end(config_of(task={"clean_support": 6}), data)
    assert with_clean.images_seen == without.images_seen + 2 * 6
    assert any(not torch.equal(v, without.parameters[k]) for k, v in with_clean.parameters.items())
    same = end(config_of(), replace(data, clean=None))
    assert all(torch.equal(v, without.parameters[k]) for k, v in same.parameters.items())


def test_interpolation_with_the_deployed_dnn_is_linear_in_the_weight(
    deployed: DeployedModel, data: RepairData
) -> None:
    start = start_of(deployed)
    step = list(walk(deployed, start, data, config_of(), seed=0, rate=0.05, episodes=1))[-1]
    none, half, whole = (interpolated(start, step, weight) for weight in (0.0, 0.5, 1.0))
    for key, repaired in step.parameters.items():
        assert torch.equal(none.parameters[key], start.parameters[key])
        assert torch.allclose(half.parameters[key], (start.parameters[key] + repaired) / 2, atol=1e-15)
        assert torch.equal(whole.parameters[key], repaired)
    mean = half.buffers["1.running_mean"]
    assert torch.allclose(mean, (start.buffers["1.running_mean"] + step.buffers["1.running_mean"]) / 2)
    assert half.buffers["1.num_batches_tracked"] == step.buffers["1.num_batches_tracked"]


def test_the_score_weights_clean_images_by_clean_weight(deployed: DeployedModel, data: RepairData) -> None:
    clean = data.clean
    assert clean is not None
    images, labels = clean.held_out.images_NHWC, clean.held_out.labels_N
    on_clean = float((deployed.logits(images).argmax(1).numpy() == labels).mean())
    validation = data.validation
    on_fog = float((deployed.logits(validation.images_NHWC).argmax(1).numpy() == validation.labels_N).mean())
    start = start_of(deployed)
    step = Step(episode=0, slot=0, parameters=start.parameters, buffers=start.buffers, images_seen=0)
    assert on_clean != on_fog
    for weight in (0.0, 0.25, 1.0):
        found = score(deployed, step, data, config_of(repair={"clean_weight": weight}))
        assert found == pytest.approx((1 - weight) * on_fog + weight * on_clean)
    with pytest.raises(ConfigError, match=r"clean_weight=0\.25 needs clean"):
        score(deployed, step, replace(data, clean=None), config_of(repair={"clean_weight": 0.25}))


def test_the_interpolation_weight_with_the_best_score_is_chosen(
    deployed: DeployedModel, data: RepairData
) -> None:
    config = config_of(repair={"interpolate": [0.0, 0.5, 1.0], "clean_weight": 1.0})
    found = choose(deployed, start_of(deployed), data, config, seed=0, budget=Budget())
    scores = []
    for step in walk(deployed, start_of(deployed), data, config, seed=0, rate=0.05, episodes=2):
        if step.slot == 1:
            mixed = [interpolated(start_of(deployed), step, w) for w in (0.0, 0.5, 1.0)]
            scores += [score(deployed, m, data, config) for m in mixed]
    assert found.score == max(scores)
    assert found.whole


@pytest.mark.parametrize(("steps", "images"), [(2, 12), (4, 24), (100, 48)])
def test_a_budget_ends_the_search_after_the_task_that_exhausts_it(
    deployed: DeployedModel, data: RepairData, steps: int, images: int
) -> None:
    budget = Budget(Limit(amount=steps, unit="steps"))
    found = choose(deployed, start_of(deployed), data, config_of(), seed=0, budget=budget)
    assert (budget.gradient_steps, budget.images_seen) == (min(steps, 8), images)
    assert found.whole == (steps == 100)


@pytest.mark.parametrize(
    ("changes", "given"),
    [({}, False), ({"task": {"clean_support": 3}}, True), ({"repair": {"clean_weight": 0.5}}, True)],
)
def test_a_method_is_given_clean_images_only_if_its_settings_use_them(
    deployed: DeployedModel,
    data: RepairData,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, dict[str, object]],
    given: bool,
) -> None:
    method, seen = get_method("finetune"), list[bool]()
    repair: Callable[..., object] = type(method).repair

    def watched(self: object, deployed: DeployedModel, data: RepairData, context: MethodContext) -> object:
        seen.append(data.clean is not None)
        return repair(self, deployed, data, context)

    monkeypatch.setattr(type(method), "repair", watched)
    repair_fairly(method, deployed, data, MethodContext(config=config_of(**changes), seed=0))
    assert seen == [given]
    if given:
        context = MethodContext(config=config_of(**changes), seed=0)
        with pytest.raises(ConfigError, match="clean training split"):
            repair_fairly(method, deployed, replace(data, clean=None), context)

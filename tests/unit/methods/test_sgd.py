"""Test plain fine-tuning: what it learns from, starts from, and chooses by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metarepair.adaptation.accuracy import accuracy_on
from metarepair.adaptation.meta_test import Start
from metarepair.adaptation.repair_data import RepairData
from metarepair.config.repair import RepairConfig
from metarepair.data.clean_images import CleanImages
from metarepair.methods import METHODS, sgd, training
from metarepair.methods.base import MethodContext
from metarepair.methods.budget import Budget, parse_limit
from metarepair.methods.registry import method_settings
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel
from metarepair.repairs.stage import repair_fairly
from small import failures_of
from tasks.records import Failures, Ints, Pixels

CLASSES, SIDE = 3, 8
FAST: dict[str, Any] = {"rate": 0.05, "batch_size": 20, "epochs": 30, "shift": 1}


def coloured(labels_N: Ints, seed: int, *, dark: bool = False) -> Pixels:
    """Images whose class is their brightest channel; dark ones are a tenth as bright."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 60, (len(labels_N), SIDE, SIDE, 3))
    images[np.arange(len(labels_N)), :, :, labels_N] += 150
    return (images // (10 if dark else 1)).astype(np.uint8)


def labels(count: int) -> Ints:
    return np.arange(count) % CLASSES


def deployed() -> DeployedModel:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    )
    return DeployedModel(name="a", module=module, num_classes=CLASSES, mean=(0.3,) * 3, std=(0.3,) * 3)


def data(*, dark_label: int = 0) -> RepairData:
    """Dark failures that are all of one class, whatever their colour, and clean images by their colour."""

    def failures(count: int, seed: int) -> Failures:
        return failures_of(np.full(count, dark_label), coloured(labels(count), seed, dark=True))

    clean = CleanImages(images_NHWC=coloured(labels(90), 9), labels_N=labels(90))
    return RepairData(target="fog", learn=failures(30, 1), validation=failures(12, 2), clean=clean)


def context(
    name: str, folder: Path | None = None, *, limit: str | None = None, **settings: Any
) -> MethodContext:
    start = jointly_trained()
    return MethodContext(
        config=RepairConfig(),
        seed=0,
        settings=method_settings(name, FAST | settings),
        budget=Budget(None if limit is None else parse_limit(limit)),
        folder=folder,
        load_meta=lambda: start,
        load_joint=lambda: start,
        load_merged=lambda: start,
    )


def jointly_trained() -> Start:
    torch.manual_seed(7)
    module = deployed().module
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Start(
        parameters={k: v.detach() for k, v in module.named_parameters()}, buffers=dict(module.named_buffers())
    )


def on_clean(repaired: RepairedModel) -> float:
    images = coloured(labels(60), 33)
    clean = CleanImages(images_NHWC=images, labels_N=labels(60))
    return accuracy_on(deployed(), repaired.parameters, repaired.buffers, clean)


def on_failures(repaired: RepairedModel) -> float:
    return accuracy_on(deployed(), repaired.parameters, repaired.buffers, data().validation)


def test_it_repairs_the_failures_and_learns_the_clean_images() -> None:
    repaired = repair_fairly(METHODS["sgd"], deployed(), data(), context("sgd"))
    assert on_failures(repaired) > 0.9
    assert on_clean(repaired) > 0.9
    assert repaired.gradient_steps > 0
    assert repaired.images_seen == 20 * repaired.gradient_steps


def test_without_clean_images_in_the_batch_it_forgets_them() -> None:
    repaired = repair_fairly(
        METHODS["sgd"], deployed(), data(), context("sgd", collected_share=1.0, clean_weight=0.0)
    )
    assert on_failures(repaired) > 0.9
    assert on_clean(repaired) < 0.75


def test_clean_images_choose_as_well() -> None:
    """Training on failures alone harms clean images, so with all weight on these the state before it is kept."""
    start = jointly_trained()
    known = coloured(labels(90), 9)
    clean = CleanImages(
        images_NHWC=known, labels_N=start_net(start).logits(known).argmax(1).numpy()
    )  # all right before the repair
    given = RepairData(
        target="fog", learn=data(dark_label=1).learn, validation=data(dark_label=1).validation, clean=clean
    )
    kept = repair_fairly(
        METHODS["joint_sgd"], deployed(), given, context("joint_sgd", collected_share=1.0, clean_weight=1.0)
    )
    assert all(value.equal(start.parameters[key]) for key, value in kept.parameters.items())
    moved = repair_fairly(
        METHODS["joint_sgd"], deployed(), given, context("joint_sgd", collected_share=1.0, clean_weight=0.0)
    )
    assert not all(value.equal(start.parameters[key]) for key, value in moved.parameters.items())


def start_net(start: Start) -> DeployedModel:
    net = deployed()
    net.module.load_state_dict({**start.parameters, **start.buffers})
    return net


def test_one_starts_from_the_deployed_and_others_from_the_given_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def look(self: training.Training) -> nn.Module:
        seen.append({k: v.detach().clone() for k, v in self.module.named_parameters()})
        return self.module

    monkeypatch.setattr(sgd.Training, "run", look)
    for name in ("sgd", "joint_sgd", "merged_sgd", "metarepair_sgd"):
        repair_fairly(METHODS[name], deployed(), data(), context(name))
    assert all(value.equal(seen[0][key]) for key, value in deployed().module.named_parameters())
    for other in seen[1:]:
        assert all(value.equal(other[key]) for key, value in jointly_trained().parameters.items())


def test_held_out_clean_images_are_not_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    given, rows = data(), set()
    assert given.clean is not None
    held = {image.tobytes() for image in given.clean.held_out.images_NHWC}
    batch_of = training.method_batch

    def look(*arguments: Any, **options: Any) -> training.MethodBatch:
        batch = batch_of(*arguments, **options)
        rows.update(image.tobytes() for image in batch.images_BHWC_u8)
        return batch

    monkeypatch.setattr(training, "method_batch", look)
    repair_fairly(METHODS["sgd"], deployed(), given, context("sgd"))
    assert held
    assert not held & rows
    assert len(rows) == len(given.learn) + len(given.clean) - len(held)


def test_an_interrupted_training_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    whole = repair_fairly(METHODS["sgd"], deployed(), data(), context("sgd"))
    step, steps = training.Training._one_step, []

    def stop(self: training.Training) -> Any:
        steps.append(self.step)
        if len(steps) == 40:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "_one_step", stop)
        with pytest.raises(KeyboardInterrupt):
            repair_fairly(METHODS["sgd"], deployed(), data(), context("sgd", tmp_path))
    resumed = repair_fairly(METHODS["sgd"], deployed(), data(), context("sgd", tmp_path))
    assert all(value.equal(resumed.parameters[key]) for key, value in whole.parameters.items())


@pytest.mark.parametrize("limit", ["7steps", "140images"])
def test_a_budget_ends_it(limit: str) -> None:
    repaired = repair_fairly(METHODS["sgd"], deployed(), data(), context("sgd", limit=limit))
    assert repaired.gradient_steps == 7


def test_of_several_rates_the_held_out_images_choose() -> None:
    alone = {
        rate: repair_fairly(METHODS["sgd"], deployed(), data(), context("sgd", rate=rate))
        for rate in (1e-6, 0.05)
    }
    both = repair_fairly(METHODS["sgd"], deployed(), data(), context("sgd", rates=(1e-6, 0.05)))
    assert all(torch.equal(value, alone[0.05].parameters[key]) for key, value in both.parameters.items())
    assert on_clean(alone[1e-6]) < on_clean(alone[0.05])
    assert both.notes == ("rate 0.05 chosen on held-out images",)
    assert both.gradient_steps == sum(one.gradient_steps for one in alone.values())
    same = repair_fairly(METHODS["sgd"], deployed(), data(), context("sgd", rates=(0.05, 1e-6)))
    assert all(torch.equal(value, both.parameters[key]) for key, value in same.parameters.items())


def test_each_rate_has_an_equal_part_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    run = training.Training.run

    def counted(made: training.Training) -> nn.Module:
        before = made.context.budget.gradient_steps
        module = run(made)
        steps.append(made.context.budget.gradient_steps - before)
        return module

    monkeypatch.setattr(training.Training, "run", counted)
    given = context("sgd", limit="30steps", rates=(0.01, 0.02, 0.05))
    repaired = repair_fairly(METHODS["sgd"], deployed(), data(), given)
    assert all(9 <= count <= 11 for count in steps)  # a step belongs to the part that it begins in
    assert repaired.gradient_steps == 30


def test_a_repair_that_tries_rates_resumes_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    rates = {"rates": (0.01, 0.05)}
    whole = repair_fairly(METHODS["sgd"], deployed(), data(), context("sgd", tmp_path / "whole", **rates))
    step = training.Training._one_step

    def stop(made: training.Training) -> Any:
        if made.settings.rate == 0.05 and made.step == 20:
            raise KeyboardInterrupt
        return step(made)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "_one_step", stop)
        with pytest.raises(KeyboardInterrupt):
            repair_fairly(METHODS["sgd"], deployed(), data(), context("sgd", tmp_path / "cut", **rates))
    again = repair_fairly(METHODS["sgd"], deployed(), data(), context("sgd", tmp_path / "cut", **rates))
    assert all(torch.equal(value, again.parameters[key]) for key, value in whole.parameters.items())
    assert again.gradient_steps == whole.gradient_steps

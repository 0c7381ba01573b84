"""Test what joint training learns from, and that it gives the same DNN however it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from crew import Crew, parameters, trained
from metarepair.config.joint import JointConfig
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.data.clean_images import CleanImages
from metarepair.data.learned_images import LearnedImages, learned_images
from metarepair.data.workspace import Surroundings, load_surroundings
from metarepair.features import confidence_tables
from metarepair.models.build import DeployedModel, build_model
from metarepair.pretraining.joint import JointSource, train_jointly
from metarepair.pretraining.pretrain import Epoch, Pretrainer
from metarepair.runs.context import LocalContext
from metarepair.runs.layout import Run
from metarepair.stages.joint import joint_probabilities, joint_settings
from tasks.datasets import load_dataset
from tasks.environments import AS_GIVEN, corrupted
from tasks.errors import ConfigError, DivergedError
from tasks.sampling.confidence import Confidence
from tasks.storage.paths import place

CPU = torch.device("cpu")
DATA = load_dataset("cifar10_sample", "train").head(120)
CLEAN = CleanImages(images_NHWC=DATA.images_NHWC, labels_N=DATA.labels_N)
SMALL: dict[str, Any] = {"rounds": 2, "round_steps": 3, "batch_size": 32, "groups": 4, "shift": 2}


class Brightness:
    """An environment whose images are all of one value, its severity, and whose labels are 7."""

    name, classes, severities, image_shape = "bright", DATA.classes, (101, 202), (32, 32, 3)
    image_ids_N = groups_N = np.arange(50)
    labels_N, parts_N = np.full(50, 7), np.zeros(50, np.int8)

    def images(self, rows_B: Any, severity: int) -> Any:
        return np.full((len(rows_B), 32, 32, 3), severity, np.uint8)


def fog() -> LearnedImages:
    return LearnedImages(source=corrupted(DATA, "fog", severities=[3, 5], seed=0), rows_N=np.arange(120))


def bright(rows: Any = range(50)) -> LearnedImages:
    return LearnedImages(source=Brightness(), rows_N=np.array(rows))


def dnn() -> DeployedModel:
    torch.manual_seed(0)
    module = build_model("resnet8_cifar", 10).eval()
    return DeployedModel(name="a", module=module, num_classes=10, mean=(0.0,) * 3, std=(1.0,) * 3)


def plain() -> DeployedModel:
    """A DNN without batch norm."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(512, 10))
    return DeployedModel(name="a", module=module, num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)


def source(deployed: DeployedModel, rank: int = 0, world_size: int = 1, **changes: Any) -> JointSource:
    config = JointConfig(**(SMALL | changes))
    experiences = {"bright": bright(), "fog": fog()}
    return JointSource(
        deployed=deployed,
        clean=CLEAN,
        experiences=experiences,
        config=config,
        seed=1,
        rank=rank,
        world_size=world_size,
    )


def trainer(context: Any, core_seconds: float | None = None, **changes: Any) -> Pretrainer:
    deployed, changes = dnn(), {"precision": "float64"} | changes
    made = source(deployed, context.rank, context.world_size, **changes)
    return Pretrainer(
        deployed,
        made,
        made.config.as_pretraining(),
        context,
        seed=1,
        groups=made.config.groups,
        section="joint",
        core_seconds=core_seconds,
    )


def alone() -> LocalContext:
    return LocalContext(folder=place("unused"), device=CPU)


def test_a_group_is_half_clean_and_half_of_one_experience_at_one_severity() -> None:
    given = source(dnn(), flip=False, shift=0)
    seen = set()
    clean = DATA.images_NHWC.astype(np.float32).transpose(0, 3, 1, 2) / 255
    known = {image.tobytes(): label for image, label in zip(clean, DATA.labels_N.tolist(), strict=True)}
    for step in range(30):
        batch = given.batch((0, step))
        for images, labels in zip(batch.images_BCHW.split(8), batch.labels_B.split(8), strict=True):
            for image, label in zip(images[:4].numpy(), labels[:4].tolist(), strict=True):
                assert known[image.tobytes()] == label
            values = images[4:].unique()
            if len(values) == 1:
                seen.add(round(float(values[0]) * 255))
                assert (labels[4:] == 7).all()
            else:
                seen.add("fog")
                assert not any(image.tobytes() in known for image in images[4:].numpy())
    assert seen == {101, 202, "fog"}


@pytest.mark.parametrize("world_size", [2, 3, 4, 6])
def test_all_workers_together_see_what_one_sees(world_size: int) -> None:
    whole = source(dnn()).batch((1, 2))
    parts = [source(dnn(), rank, world_size).batch((1, 2)) for rank in range(world_size)]
    assert torch.equal(torch.cat([p.images_BCHW for p in parts if len(p.labels_B)]), whole.images_BCHW)
    assert torch.equal(torch.cat([p.labels_B for p in parts]), whole.labels_B)


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_any_number_of_workers_trains_the_same_dnn_with_batch_norm(workers: int) -> None:
    one = trainer(alone())
    start, epochs = parameters(one).clone(), trained(one)
    for rank, seen in Crew(workers).train(trainer):
        torch.testing.assert_close(parameters(rank), parameters(one), rtol=0, atol=1e-9)
        for own, other in zip(rank.weights.statistics(), one.weights.statistics(), strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-9)
        assert [e.loss for e in seen] == pytest.approx([e.loss for e in epochs], rel=1e-9)
    assert (parameters(one) - start).norm() > 0.01


def test_workers_with_a_budget_of_core_seconds_stop_at_the_same_step() -> None:
    """Each knows what all have spent. Clocks differ, so equal weights show that the rate followed the same share."""
    ranks = Crew(2).train(partial(trainer, core_seconds=5.0, rounds=1))
    (one, seen), (other, seen_too) = ranks
    assert torch.equal(parameters(one), parameters(other))
    assert [e.images for e in seen] == [e.images for e in seen_too]
    assert sum(e.images for e in seen) > 3 * 32  # one round, which does not decide
    assert one.weights.core_seconds == other.weights.core_seconds >= 5.0
    assert sum(e.core_seconds for e in seen) == pytest.approx(one.weights.core_seconds)
    assert one.weights.optimizer.param_groups[0]["lr"] < 0.02 * 0.5  # the cosine has come to its end


def test_a_step_is_sgd_on_the_mean_loss_of_the_groups() -> None:
    made = trainer(alone(), rounds=1, round_steps=1)
    reference = dnn()
    reference.module.double().train()
    batch = made.source.batch((0, 0))
    statistics = []
    before = {k: v.clone() for k, v in reference.module.named_buffers()}
    loss = torch.zeros((), dtype=torch.float64)
    for images, labels in zip(batch.images_BCHW.split(8), batch.labels_B.split(8), strict=True):
        for name, buffer in reference.module.named_buffers():
            buffer.data = before[name].clone()
        loss = loss + torch.nn.functional.cross_entropy(reference.module(images.double()), labels) / 4
        statistics.append({k: v.clone() for k, v in reference.module.named_buffers()})
    torch.autograd.backward(loss)
    torch.optim.SGD(
        reference.module.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4
    ).step()
    (epoch,) = trained(made)
    assert epoch.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    wanted = torch.cat([p.detach().flatten() for p in reference.module.parameters()])
    torch.testing.assert_close(parameters(made), wanted, rtol=0, atol=1e-6)
    for name, buffer in made.deployed.module.named_buffers():
        if buffer.is_floating_point():
            torch.testing.assert_close(buffer, torch.stack([s[name] for s in statistics]).mean(0))


def run_jointly(
    folder: Path, make: Callable[[], DeployedModel] = dnn, *, stop_after: int | None = None, **changes: Any
) -> DeployedModel:
    def on_round(epoch: Epoch) -> None:
        if epoch.epoch == stop_after:
            raise KeyboardInterrupt

    folder.mkdir(exist_ok=True)
    return train_jointly(
        make(),
        CLEAN,
        {"bright": bright(), "fog": fog()},
        JointConfig(**(SMALL | {"rounds": 3} | changes)),
        seed=1,
        context=alone(),
        folder=place(str(folder)),
        on_round=on_round,
    )


def test_a_killed_training_is_resumed_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = run_jointly(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_jointly(tmp_path / "killed", stop_after=2)
    resumed = run_jointly(tmp_path / "killed")
    expected = whole.module.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in resumed.module.state_dict().items())
    assert not all(torch.equal(v, expected[k]) for k, v in dnn().module.state_dict().items())


def test_no_rounds_leave_the_deployed_dnn(tmp_path: Path) -> None:
    found, expected = run_jointly(tmp_path / "none", rounds=0), dnn().module.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in found.module.state_dict().items())


def test_it_learns_what_the_experiences_teach(tmp_path: Path) -> None:
    """Images of `bright` are of class 7 by nothing but the experience."""
    given = Brightness().images(range(4), 101)
    learned = run_jointly(tmp_path / "with", plain, rounds=20)
    without = run_jointly(tmp_path / "without", plain, rounds=20, clean=1.0)
    assert (learned.logits(given).argmax(1) == 7).all()
    assert not (without.logits(given).argmax(1) == 7).any()


def test_a_loss_that_is_not_finite_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"Lower joint\.rate"):
        run_jointly(tmp_path / "far", plain, rate=10.0, rounds=30)


@pytest.mark.parametrize(
    ("changes", "experiences", "message"),
    [
        ({}, {}, "there are none. Add some to mining.experiences"),
        ({}, {"bright": bright([])}, "no image of bright may be learned from"),
        ({"shift": 16, "batch_size": 4000, "groups": 4}, {"bright": bright()}, "takes 500 clean images"),
    ],
)
def test_nothing_to_learn_from_is_refused(
    tmp_path: Path, changes: dict[str, Any], experiences: dict[str, LearnedImages], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_jointly(
            dnn(),
            CLEAN,
            experiences,
            JointConfig(**(SMALL | changes)),
            seed=0,
            context=alone(),
            folder=place(str(tmp_path)),
            on_round=lambda _: None,
        )


def settings(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "name": "a",
        "device": "cpu",
        "targets": ["fog"],
        "mining": {"experiences": ["fog", "snow"], "severities": [3]},
        "data": {"max_train_images": 100, "max_test_images": 100},
    }
    return parse_config(values | changes)


def test_no_target_is_learned_from() -> None:
    assert settings().shared_experiences == ["snow"]
    assert settings(targets=["frost"]).shared_experiences == ["fog", "snow"]
    assert joint_settings(settings())["experiences"] == ["snow"]


def test_clean_images_that_select_are_not_learned_from() -> None:
    here: Surroundings = load_surroundings(settings())
    learned = learned_images(here, "snow")
    held = here.clean().held_out_rows
    assert len(held)
    assert set(learned.rows_N.tolist()) == set(range(100)) - set(held.tolist())
    assert AS_GIVEN not in learned.source.severities


def test_groups_divide_a_step() -> None:
    with pytest.raises(ConfigError, match=r"batch_size=32 is not a multiple of groups=5"):
        settings(joint={"batch_size": 32, "groups": 5})


def test_experiences_are_drawn_by_their_probabilities() -> None:
    def share_of_bright(probabilities: dict[str, float]) -> float:
        given = replace(source(dnn()), probabilities=probabilities)
        labels = [given.batch((0, step)).labels_B.reshape(4, 8)[:, 4:] for step in range(60)]
        return float((torch.stack(labels) == 7).all(2).float().mean())

    assert share_of_bright({"bright": 1.0, "fog": 0.0}) == 1.0
    assert share_of_bright({"bright": 0.0, "fog": 1.0}) < 0.05
    assert 0.65 < share_of_bright({"bright": 0.75, "fog": 0.25}) < 0.85
    assert 0.4 < share_of_bright({}) < 0.6


def test_the_probabilities_are_the_mean_of_the_targets_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each target's confidence may lie on the other target, which is left out."""
    shares = {"fog": {"snow": 0.5, "frost": 0.2, "contrast": 0.3}, "contrast": {"snow": 0.1, "fog": 0.9}}

    def read(_: Run, target: str) -> Confidence:
        p = shares[target]
        values = np.array(list(p.values()))
        return Confidence(names=tuple(p), probabilities_K=values, rule="hinge", alpha=1.0, beta=0.0)

    monkeypatch.setattr(confidence_tables, "read_confidence", read)
    mining = {"experiences": ["fog", "snow", "frost", "contrast"]}
    run = Run(place("unused"))

    def found(draw: str, targets: list[str]) -> dict[str, float] | None:
        return joint_probabilities(run, settings(targets=targets, mining=mining, joint={"draw": draw}))

    assert found("uniform", ["fog", "contrast"]) is None
    assert found("confidence", ["fog", "contrast"]) == pytest.approx({"snow": 0.75, "frost": 0.25})
    assert found("confidence", ["fog"]) == pytest.approx({"snow": 0.5, "frost": 0.2, "contrast": 0.3})
    shares["fog"] = {"contrast": 1.0}
    shares["contrast"] = {"fog": 1.0}
    with pytest.raises(ConfigError, match="all of them are targets themselves"):
        found("confidence", ["fog", "contrast"])

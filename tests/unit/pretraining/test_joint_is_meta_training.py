"""Test that joint training is meta-training without inner steps, and what the inner steps add to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metarepair.config.joint import JointConfig
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.data.clean_images import CleanImages
from metarepair.data.learned_images import LearnedImages
from metarepair.engine.types import Batch, TaskBatch
from metarepair.engine.vectors import State
from metarepair.meta_training.meta_train import MetaTrainer
from metarepair.models.build import DeployedModel
from metarepair.pretraining.joint import JointSource
from metarepair.pretraining.pretrain import Pretrainer
from metarepair.runs.context import LocalContext
from tasks.datasets import load_dataset
from tasks.environments import corrupted

DATA = load_dataset("cifar10_sample", "train").head(60)
GROUPS, STEPS = 4, 5
JOINT = JointConfig(
    rounds=STEPS,
    round_steps=1,
    batch_size=32,
    groups=GROUPS,
    rate=0.1,
    weight_decay=0.01,
    precision="float64",
)


def dnn() -> DeployedModel:
    """A DNN without batch norm, whose statistics a query would not see."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(512, 10)).double()
    return DeployedModel(name="a", module=module, num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)


def batches(deployed: DeployedModel) -> JointSource:
    experiences = {
        name: LearnedImages(
            source=corrupted(DATA, name, severities=[3, 5], seed=0), rows_N=DATA.image_ids_N.argsort()
        )
        for name in ("fog", "contrast")
    }
    clean = CleanImages(images_NHWC=DATA.images_NHWC, labels_N=DATA.labels_N)
    return JointSource(deployed=deployed, clean=clean, experiences=experiences, config=JOINT, seed=1)


class Tasks:
    """The groups of joint training as tasks: half of the outer loss is on clean images, half on an environment's.

    The support is a group of another step, which joint training sees then.
    """

    def __init__(self) -> None:
        self.deployed = dnn()
        self.batches = batches(self.deployed)

    def task(self, episode: int, slot: int) -> TaskBatch:
        clean, environment = self._halves(episode, slot)
        support = self._halves((episode + 1) % STEPS, slot)[1]
        return TaskBatch(support=support, query=environment, clean=clean)

    def _halves(self, step: int, group: int) -> tuple[Batch, Batch]:
        made = self.batches.batch((step, 0)).parts(GROUPS)[group]
        first, second = (
            Batch(images_BCHW=images, labels_B=labels)
            for images, labels in zip(made.images_BCHW.split(4), made.labels_B.split(4), strict=True)
        )
        return first, second


def config(**inner: Any) -> Config:
    """Meta-training with the outer step of joint training.

    The gradient of an episode is the sum over its tasks, that of joint training the mean.
    """
    sgd = {"momentum": 0.9, "nesterov": True, "weight_decay": GROUPS * JOINT.weight_decay}
    train = {
        "episodes": STEPS,
        "tasks": GROUPS,
        "order": "first",
        "query": {"failures": 1, "clean": 1},
        "outer_optimizer": "SGD",
        "outer_options": sgd,
        "outer_rate": JOINT.rate / GROUPS,
        "outer_decay": "cosine",
        "precision": "float64",
    }
    return parse_config({"name": "a", "mining": {"experiences": ["fog"]}, "inner": inner, "train": train})


def apart(one: State, other: State) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in other)


@pytest.mark.parametrize(("steps", "alike"), [(0, True), (1, False), (3, False)])
def test_without_inner_steps_meta_training_is_joint_training_step_for_step(
    tmp_path: Path, steps: int, alike: bool
) -> None:
    """With them the loss is that after a repair, whose support is all that meta-training adds."""
    context = LocalContext(folder=tmp_path, device=torch.device("cpu"))
    deployed = dnn()
    joint = Pretrainer(
        deployed, batches(deployed), JOINT.as_pretraining(), context, seed=1, groups=GROUPS, section="joint"
    )
    tasks = Tasks()
    meta = MetaTrainer(tasks, config(steps=steps, rate=0.05), context)  # type: ignore[arg-type]
    start = {name: value.detach().clone() for name, value in deployed.module.named_parameters()}
    for step in range(STEPS):
        epoch, metrics = joint.run_epoch(), meta.run_episode()
        weights = {name: value.detach() for name, value in deployed.module.named_parameters()}
        assert apart(weights, start) > 0.01
        assert (apart(meta.parameters, weights) < 1e-12) == alike
        assert (metrics["query_loss"] == pytest.approx(epoch.loss, rel=1e-12)) == alike, step
    joint.close()
    meta.close()


def test_inner_steps_are_needed_by_what_differentiates_them() -> None:
    assert config(steps=0).inner.steps == 0
    values: dict[str, Any] = {"name": "a", "mining": {"experiences": ["fog"]}, "inner": {"steps": 0}}
    for train in ({"order": "reptile"}, {"multi_step_episodes": 3}):
        with pytest.raises(Exception, match=r"needs inner steps, and inner\.steps is 0"):
            parse_config(values | {"train": train})
    with pytest.raises(Exception, match=r"inner\.learned_rates needs inner steps"):
        parse_config(values | {"inner": {"steps": 0, "learned_rates": True}})

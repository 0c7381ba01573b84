"""Measure how fast this machine trains, classifies and corrupts, with the user's own model and images."""

# B images, C H W pixels

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from metarepair.adaptation.meta_test import inner_rule
from metarepair.config.run import Config
from metarepair.data.clean_images import CleanImages
from metarepair.data.learned_images import LearnedImages, learned_images
from metarepair.data.workspace import Surroundings
from metarepair.engine.inner import FunctionalNet
from metarepair.engine.meta_gradient import task_gradient
from metarepair.engine.types import Batch, TaskBatch
from metarepair.fixing.plan import Speeds
from metarepair.models.build import DeployedModel
from metarepair.models.wrappers import copied
from metarepair.pretraining.joint import JointSource, check_joint
from metarepair.pretraining.pretrain import Pretrainer
from metarepair.runs.context import LocalContext
from tasks.keys import keyed_generator

logger = logging.getLogger(__name__)
STEP_S, IMAGE_S, LEARNED_S, MINED_S, TASK_S = 3.5, 0.6, 0.7, 1.5, 1.5  # time for each measurement, in seconds
BATCH, FEW = 64, 8
SECOND_ORDER = (
    4.0  # a task's cost as a multiple of its images' forward and backward passes, if it is not measured
)


def measure(config: Config, here: Surroundings) -> tuple[Speeds, int]:
    """Measure with the model and the clean images of a run, for at most ten seconds unless one step takes longer.

    Returns the speeds, and the number of threads, at most `train.threads`, with which they were measured: all of these
    or one, whichever is faster. The model is not changed, and nothing is written.
    """
    clean = here.clean()
    threads, learned_s = _fastest_threads(here.deployed, clean, most=config.train.threads)
    torch.set_num_threads(threads)
    experiences = {name: learned_images(here, name) for name in config.shared_experiences}
    image_s = _image_seconds(here.deployed, clean)
    support = config.task.shots * here.deployed.num_classes + config.task.clean_support
    speeds = Speeds(
        step_s=_step_seconds(config, here.deployed, clean, experiences, learned_s),
        image_s=image_s,
        learned_image_s=learned_s,
        mined_image_s=image_s + _corruption_seconds(experiences),
        task_s=_task_seconds(config, here.deployed, clean, support, learned_s),
        support_images=support,
    )
    return speeds, threads


def seconds_of(work: Callable[[], object], *, limit_s: float) -> float:
    """The mean seconds of `work`, repeated until `limit_s` have passed; at least once."""
    started, times = time.monotonic(), 0
    while not times or time.monotonic() - started < limit_s:
        work()
        times += 1
    return (time.monotonic() - started) / times


def _fastest_threads(deployed: DeployedModel, clean: CleanImages, *, most: int) -> tuple[int, float]:
    """The faster number of threads, one or `most`, and the seconds per image learned from.

    On a machine that others use, too, more threads are often slower, since each waits for the slowest.
    """
    found = {}
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        found[threads] = _learned_seconds(deployed, clean)
    best = min(found, key=lambda threads: found[threads])
    return best, found[best]


def _step_seconds(
    config: Config,
    deployed: DeployedModel,
    clean: CleanImages,
    experiences: Mapping[str, LearnedImages],
    learned_s: float,
) -> float:
    """A step of joint training on a copy of the model, its images included; estimated if there are no experiences."""
    if not experiences:  # a kit has been trained jointly already
        return config.joint.batch_size * learned_s
    check_joint(config.joint, clean, experiences, pixels=deployed.input_size)
    own = replace(deployed, module=copied(deployed.module))
    joint = config.joint.model_copy(update={"rounds": 1, "round_steps": 1})
    source = JointSource(deployed=own, clean=clean, experiences=experiences, config=joint, seed=config.seed)
    context = LocalContext(folder=Path(os.devnull), device=deployed.device)
    trainer = Pretrainer(
        own, source, joint.as_pretraining(), context, seed=config.seed, groups=joint.groups, section="joint"
    )
    try:
        first_s = seconds_of(trainer.run_epoch, limit_s=0)  # it waits for its batch, which the others do not
        return first_s if first_s > STEP_S else seconds_of(trainer.run_epoch, limit_s=STEP_S - first_s)
    finally:
        trainer.close()


def _image_seconds(deployed: DeployedModel, clean: CleanImages) -> float:
    images_BHWC = _some(clean).images_NHWC[:]
    deployed.logits(images_BHWC[:FEW])  # a first call is slow
    return seconds_of(lambda: deployed.logits(images_BHWC), limit_s=IMAGE_S) / len(images_BHWC)


def _learned_seconds(deployed: DeployedModel, clean: CleanImages) -> float:
    """An image forward and backward, in training mode, on a copy of the model."""
    some, module = _some(clean), copied(deployed.module).train()

    def work(count: int) -> None:
        labels_B = torch.from_numpy(some.labels_N[:count]).to(deployed.device)
        with torch.enable_grad():
            loss = F.cross_entropy(module(deployed.normalise(some.images_NHWC[:count])), labels_B)
            torch.autograd.backward(loss)

    work(FEW)  # a first call is slow
    return seconds_of(partial(work, BATCH), limit_s=LEARNED_S) / len(some)


def _corruption_seconds(experiences: Mapping[str, LearnedImages]) -> float:
    """The mean seconds to corrupt one image, over the experiences."""
    generator = keyed_generator("speeds")
    spent, limit_s = [], MINED_S / max(1, len(experiences))
    for learned in experiences.values():
        severity = int(generator.choice(learned.source.severities))
        draw = partial(learned.drawn, FEW, severity, generator)
        spent.append(seconds_of(draw, limit_s=limit_s) / FEW)
    return float(np.mean(spent)) if spent else 0.0


def _task_seconds(
    config: Config, deployed: DeployedModel, clean: CleanImages, support: int, learned_s: float
) -> float:
    """A task of meta-training on clean images; estimated if it would take too long."""
    estimated_s = SECOND_ORDER * (config.inner.steps * support + config.task.query_size) * learned_s
    if estimated_s > TASK_S:
        return estimated_s
    net = FunctionalNet(copied(deployed.module), inner_rule(config))
    task = TaskBatch(
        support=_batch(deployed, clean, support), query=_batch(deployed, clean, config.task.query_size)
    )
    order = config.train.order
    return seconds_of(
        lambda: task_gradient(net, net.parameters(), net.buffers(), task, order=order),
        limit_s=TASK_S,
    )


def _batch(deployed: DeployedModel, clean: CleanImages, count: int) -> Batch:
    rows_B = np.arange(count) % len(clean)
    labels_B = torch.from_numpy(clean.labels_N[rows_B]).to(deployed.device)
    return Batch(images_BCHW=deployed.normalise(clean.images_NHWC[rows_B]), labels_B=labels_B)


def _some(clean: CleanImages) -> CleanImages:
    return clean.take(np.arange(min(BATCH, len(clean))))

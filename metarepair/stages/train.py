"""Meta-training for one target: its inputs from storage, the trainer, and the loop in this process.

Source: paper Algorithm 1, lines 2-12. The loop is `metarepair.meta_training.meta_train`; each task of an episode is
drawn by `metarepair.meta_training.task_source.TaskSource`.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from metarepair.adaptation.repair_data import RepairData, split_collected
from metarepair.config.run import SHARED, Config
from metarepair.data.clean_images import CleanImages
from metarepair.data.learned_images import LearnedImages, collected, learned_images
from metarepair.data.workspace import Surroundings, load_surroundings
from metarepair.engine.vectors import put_state
from metarepair.features.confidence_tables import read_confidence, shared_confidence
from metarepair.meta_training.inputs import TrainingInputs
from metarepair.meta_training.meta_train import MetaTrainer, meta_train
from metarepair.meta_training.task_source import TaskSource
from metarepair.meta_training.theta_meta import read_start
from metarepair.models.build import DeployedModel
from metarepair.models.fit import fit
from metarepair.models.weights_file import read_weights
from metarepair.runs.checkpoint import newest_checkpoint, read_state
from metarepair.runs.context import Context, LocalContext, Metrics
from metarepair.runs.layout import Run
from metarepair.runs.progress import CORE_SECONDS, Progress
from metarepair.weights import start_file
from tasks.experiences.store import open_side
from tasks.records import Experience
from tasks.sampling.confidence import Confidence
from tasks.storage.manifest import require_manifest
from tasks.storage.paths import Place
from tasks.storage.stages import JOINT, TARGET


def confidence_in(run: Run, config: Config, training: str) -> Confidence:
    """The experiences of a meta-training, that of a target or `shared`, and how often each is drawn."""
    return shared_confidence(run, config) if training == SHARED else read_confidence(run, training)


def inputs_of(run: Run, config: Config, target: str) -> TrainingInputs:
    """The inputs of training for a target, or `shared`, from a mined and scored run."""
    confidence = confidence_in(run, config, target)
    mined = run if run.kit is None else Run(run.kit)
    return TrainingInputs(
        target=target,
        experiences={name: mined.experience(name) for name in confidence.names},
        collect=None if target == SHARED else run.target(target),
        split="test",
        confidence=confidence,
        start=run.joint if run.kit is None else run.meta(SHARED),
        of_kit=run.kit is not None,
    )


def build_trainer(inputs: TrainingInputs, config: Config, context: Context) -> MetaTrainer:
    """Build the trainer of a rank from storage: experiences as memory maps, confidence, validation part."""
    torch.set_num_threads(config.train.threads)
    here = load_surroundings(config, device=context.device, folder=inputs.images)
    _load_start(here.deployed, inputs, config)
    here.deployed.module.to(torch.float64 if config.train.precision == "float64" else torch.float32)
    named = () if inputs.of_kit else inputs.experiences
    learned = {name: learned_images(here, name) for name in named}
    experiences = {
        name: _experience(name, folder, here, learned.get(name))
        for name, folder in inputs.experiences.items()
    }
    query = config.train.query
    source = TaskSource(
        deployed=here.deployed,
        experiences=experiences,
        confidence=inputs.confidence,
        config=config,
        clean=here.clean() if query.clean or config.task.clean_support else None,
        learned=learned,
    )
    return MetaTrainer(source, config, context, validation=_validation(inputs, config, here, source.clean))


def _experience(name: str, folder: Place, here: Surroundings, learned: LearnedImages | None) -> Experience:
    """A mined experience without failures of clean images that select; `learned` is None for one of a kit."""
    manifest = require_manifest(folder, TARGET.remedy)
    sides: tuple[Literal["collect", "fail"], ...] = ("collect", "fail")
    if learned is None:
        collect, fail = (open_side(folder, side, manifest) for side in sides)
    else:
        shown = here.environment("train", name)
        collect, fail = (collected(open_side(folder, side, manifest, shown), learned) for side in sides)
    return Experience(corruption=name, collect=collect, fail=fail)


def _validation(
    inputs: TrainingInputs, config: Config, here: Surroundings, clean: CleanImages | None
) -> RepairData | None:
    """What a repair is scored on after each round; None if the training is for all targets."""
    if inputs.collect is None:
        return None
    mined, target = (
        require_manifest(inputs.collect, TARGET.remedy),
        here.environment(inputs.split, inputs.target),
    )
    collect = open_side(inputs.collect, "collect", mined, target)
    return replace(split_collected(collect, config, 0, target), clean=clean)


def _load_start(deployed: DeployedModel, inputs: TrainingInputs, config: Config) -> None:
    """Put the weights that meta-training starts from into the deployed DNN, in place of its own (`train.start`)."""
    if config.train.start == "joint":
        start = read_start(inputs.start, deployed.module, remedy=JOINT.remedy)
        put_state(deployed.module, start.parameters | start.buffers)
    else:
        put_start(deployed.module, config.train.start, deployed.name)


def put_start(module: nn.Module, start: str, name: str) -> None:
    """Load the weights file that `train.start` names, if it names one. Raises WeightsError if it is of another DNN."""
    path = start_file(start)
    if path is not None:
        remedy = f"train.start={start!r} names a file of weights: give one of the deployed DNN, deployed, or joint."
        module.load_state_dict(fit(module, read_weights(path), name, remedy=remedy).tensors)


def train_here(run: Run, config: Config, target: str, device: torch.device) -> None:
    """Meta-train in this process, without Ray."""
    kept = config.train.kept_checkpoints
    context = LocalContext(folder=run.meta(target), device=device, kept=kept)
    trainer = build_trainer(inputs_of(run, config, target), config, context)
    progress = training_progress(run, config, target, level=logging.DEBUG)  # the context logs a warning
    context.on_report = lambda metrics: show_metrics(progress, metrics)
    meta_train(trainer)


def training_progress(run: Run, config: Config, target: str, *, level: int = logging.WARNING) -> Progress:
    """Progress in episodes, starting at the newest checkpoint. A damaged checkpoint is logged with `level`."""
    checkpoint = newest_checkpoint(run.meta(target), level=level)
    state = read_state(checkpoint) if checkpoint is not None else None
    budget = config.core_seconds(parts=len(config.trainings))
    if budget is not None:
        spent = 0 if state is None else int(state["cost"]["core_seconds"])
        return Progress(f"train {target}", math.ceil(budget), CORE_SECONDS, done=spent)
    done = 0 if state is None else int(state["episode"])
    return Progress(f"train {target}", config.train.episodes, "episodes", done=done)


def show_metrics(progress: Progress, metrics: Metrics) -> None:
    """Advance `progress` to the episode, or to the core-seconds, of a report."""
    reached = int(metrics["core_seconds" if progress.unit == CORE_SECONDS else "episode"])
    if reached > progress.done:
        progress.advance(reached - progress.done, describe(metrics))


def describe(metrics: Metrics) -> str:
    """The metrics of a report in a few words."""
    if "skipped" in metrics:
        return f"not finite and skipped, {metrics['skipped']:.0f} so far"
    text = f"query loss {metrics['query_loss']:.3f}, query accuracy {metrics['query_accuracy']:.1%}"
    if "validation_accuracy" in metrics:
        text += f", validation {metrics['validation_accuracy']:.1%}"
    return text

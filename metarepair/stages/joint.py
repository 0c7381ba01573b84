"""Train the deployed DNN jointly on clean images and experiences, once for all targets, up to `joint/` of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch

from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings, load_surroundings
from metarepair.models.build import DeployedModel, save_weights
from metarepair.models.wrappers import copied
from metarepair.pretraining.joint import LearnedImages, train_jointly
from metarepair.pretraining.pretrain import Epoch
from metarepair.pretraining.state import TrainedWeights, load_checkpoint
from metarepair.runs.context import Context, LocalContext
from metarepair.runs.layout import Run
from metarepair.runs.run_stage import StageOutput
from metarepair.stages.pretrain import EPOCHS, describe, epoch_progress, log_epoch, read_epochs
from tasks.corruptions.draws import DRAWS_VERSION
from tasks.corruptions.plugins import plugin_settings
from tasks.environments import CorruptedImages, UserImages
from tasks.records import Ints
from tasks.splits import LEARN
from tasks.storage.settings import Settings

logger = logging.getLogger(__name__)


def joint_settings(config: Config) -> Settings:
    """The settings that jointly trained weights depend on."""
    names = config.shared_experiences
    return (
        config.settings(include={"seed", "model", "joint"})
        | {
            "data": config.data.settings(exclude={"root", "train", "test", "archive"}),
            "experiences": names,
            "severities": list(config.mining.severities),
            "judge_fraction": config.mining.judge_fraction,
            "corruption_draws": DRAWS_VERSION,
        }
        | plugin_settings(config.corruptions_of(names))
    )


def joint_inputs(config: Config, here: Surroundings) -> dict[str, str]:
    """Digests of what jointly trained weights depend on: the DNN, the data set, and the user's own experiences."""
    inputs = here.inputs()
    for name in config.shared_experiences:
        inputs |= here.inputs_of(name)
    return inputs


def keep_joint(run: Run, config: Config, here: Surroundings) -> StageOutput:
    """Write the weights of the finished training to where repairs read them."""
    trained = TrainedWeights(copied(here.deployed.module), config.joint.as_pretraining())
    load_checkpoint(run.joint, trained)
    assert trained.epochs_done == config.joint.rounds
    weights = run.joint / "model.safetensors"
    save_weights(weights, trained.kept(), {"model": config.model.name})
    rounds, settings = read_epochs(run.joint), config.joint
    images = settings.rounds * settings.round_steps * settings.batch_size
    seconds = sum(one["seconds"] for one in rounds)
    logger.info(f"joint training: {images:,} images in {seconds:.0f} s, {weights}")
    return StageOutput(
        files=["model.safetensors", *([EPOCHS] if rounds else [])],
        facts={"seconds": seconds, "images_seen": images, "workers": config.workers},
    )


def train_jointly_here(
    run: Run, config: Config, context: Context, on_round: Callable[[Epoch], None] = lambda _: None
) -> DeployedModel:
    """Train to the last round, as one of the workers of `context`; return the DNN."""
    torch.set_num_threads(config.train.threads)
    here = load_surroundings(config, device=context.device)
    experiences = {name: learned_images(here, name) for name in config.shared_experiences}
    return train_jointly(
        here.deployed,
        here.clean(),
        experiences,
        config.joint,
        seed=config.seed,
        context=context,
        folder=run.joint,
        on_round=on_round,
    )


def train_with_progress(run: Run, config: Config, device: torch.device) -> None:
    """Train in this process, without Ray, and show the rounds."""
    progress = epoch_progress("joint training", config.joint.rounds, "rounds", run.joint)

    def on_round(one: Epoch) -> None:
        log_epoch(run.joint, one)
        progress.advance(one.epoch - progress.done, describe(asdict(one)))

    train_jointly_here(run, config, LocalContext(folder=run.joint, device=device), on_round)


def learned_images(here: Surroundings, name: str) -> LearnedImages:
    """An experience with the rows to learn from, without the clean images by which repairs are selected."""
    source = here.environment("train", name)
    if isinstance(source, UserImages):
        return LearnedImages(source=source, rows_N=np.flatnonzero(source.learned_N))
    assert isinstance(source, CorruptedImages)
    mask = source.parts_N == LEARN
    if source.data.split == "train":
        mask[here.clean().held_out_rows] = False
    rows_N: Ints = np.flatnonzero(mask)
    return LearnedImages(source=source, rows_N=rows_N)

"""Train the deployed DNN jointly on clean images and experiences, once for all targets, up to `joint/` of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from metarepair.config.run import Config
from metarepair.data.learned_images import learned_images
from metarepair.data.workspace import Surroundings, load_surroundings
from metarepair.features.confidence_tables import read_confidence, shared_confidence
from metarepair.models.build import DeployedModel, save_weights
from metarepair.models.wrappers import copied
from metarepair.pretraining.joint import train_jointly
from metarepair.pretraining.pretrain import Epoch
from metarepair.pretraining.state import TrainedWeights, load_checkpoint
from metarepair.runs.context import Context, LocalContext
from metarepair.runs.layout import Run
from metarepair.runs.progress import Progress
from metarepair.runs.run_stage import StageOutput
from metarepair.stages.pretrain import EPOCHS, epoch_progress, log_epoch, read_epochs, show_epochs
from tasks.corruptions.draws import DRAWS_VERSION
from tasks.corruptions.plugins import plugin_settings
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
        | config.budget_settings()
    )


def joint_inputs(run: Run, config: Config, here: Surroundings) -> dict[str, str]:
    """Digests of what jointly trained weights depend on: the DNN, the data, and the confidence if they are drawn by it.

    Raises StageError if the confidence is needed and not scored.
    """
    inputs = here.inputs()
    for name in config.shared_experiences:
        inputs |= here.inputs_of(name)
    if config.joint.draw == "confidence":
        inputs |= {f"confidence {target}": read_confidence(run, target).digest for target in config.targets}
    return inputs


def joint_probabilities(run: Run, config: Config) -> dict[str, float] | None:
    """How often each experience is drawn; None for all alike. Raises ConfigError as `shared_confidence` does."""
    if config.joint.draw == "uniform":
        return None
    return dict.fromkeys(config.shared_experiences, 0.0) | shared_confidence(run, config).as_dict()


def keep_joint(run: Run, config: Config, here: Surroundings) -> StageOutput:
    """Write the weights of the finished training to where repairs read them."""
    trained = TrainedWeights(copied(here.deployed.module), config.joint.as_pretraining())
    load_checkpoint(run.joint, trained)
    weights = run.joint / "model.safetensors"
    save_weights(weights, trained.kept(), {"model": config.model.name})
    rounds = read_epochs(run.joint)
    images = sum(int(one["images"]) for one in rounds)
    seconds = sum(one["seconds"] for one in rounds)
    logger.info(f"joint training: {images:,} images in {seconds:.0f} s, {weights}")
    return StageOutput(
        files=["model.safetensors", *([EPOCHS] if rounds else [])],
        facts={
            "seconds": seconds,
            "core_seconds": trained.core_seconds,
            "forward_images": images,
            "backward_images": images,
            "images_seen": images,
            "workers": config.workers,
        },
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
        probabilities=joint_probabilities(run, config),
        core_seconds=config.preparation_budget,
    )


def joint_progress(run: Run, config: Config) -> Progress:
    """Progress in rounds, or in core-seconds if these decide."""
    spent = config.preparation_budget
    return epoch_progress("joint training", config.joint.rounds, "rounds", run.joint, core_seconds=spent)


def train_with_progress(run: Run, config: Config, device: torch.device) -> None:
    """Train in this process, without Ray, and show the rounds."""
    progress = joint_progress(run, config)

    def on_round(one: Epoch) -> None:
        log_epoch(run.joint, one)
        show_epochs(progress, run.joint)

    train_jointly_here(run, config, LocalContext(folder=run.joint, device=device), on_round)

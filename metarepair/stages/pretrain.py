"""Pretrain the DNN as a resumable stage, up to `deployed/model.safetensors` of a run."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch

from metarepair.config.run import Config
from metarepair.data.workspace import pick_device
from metarepair.models.build import DeployedModel, save_weights
from metarepair.pretraining.checks import check_data
from metarepair.pretraining.pretrain import Epoch, pretrain
from metarepair.runs.context import Entry, LocalContext, entry_of
from metarepair.runs.layout import open_run
from metarepair.runs.logs import RESULTS
from metarepair.runs.progress import CORE_SECONDS, Progress
from metarepair.runs.run_stage import StageOutput, run_stage
from metarepair.trackers.tracking import Tracking, training_subject
from tasks.datasets import ArrayDataset, dataset_info, load_dataset
from tasks.storage.manifest import discard
from tasks.storage.paths import Place, read_json, write_text
from tasks.storage.settings import Settings
from tasks.storage.stages import DEPLOYED

logger = logging.getLogger(__name__)
EPOCHS = "epochs.json"
TrainElsewhere = Callable[[Config, Place], None]


def pretrain_stage(
    config: Config,
    *,
    restart: bool,
    train_elsewhere: TrainElsewhere | None = None,
) -> None:
    """Train the configured DNN on the clean training split and log its accuracy on the test split.

    train_elsewhere: trains to the end on Ray and leaves the checkpoint; None to train in this process.
    """
    run = open_run(config)
    folder, tracking = run.root / "deployed", Tracking(config, run.root)
    data = training_split(config)
    workers = config.workers if train_elsewhere is not None else 1
    check_data(config.pretrain, data, pixels=config.model.input_size, workers=workers)
    settings = pretraining_settings(config)
    subject = training_subject(config, DEPLOYED.title(), folder, settings, group="pretrain")

    def make() -> StageOutput:
        with tracking.following(subject, partial(epochs_after, folder)):
            return _pretrain(config, data, folder, train_elsewhere)

    with tracking:
        if restart:  # only now: a wrong setting must not delete the old weights
            discard(folder)
        run_stage(DEPLOYED, folder, make, config=settings, inputs={"train": data.digest()})


def _pretrain(
    config: Config,
    data: ArrayDataset,
    folder: Place,
    train_elsewhere: TrainElsewhere | None,
) -> StageOutput:
    """Train to the end, and evaluate the weights on the test split."""
    if train_elsewhere is not None:
        train_elsewhere(config, folder)
    deployed = _train_here(config, data, folder, elsewhere=train_elsewhere is not None)
    test = load_dataset(config.data.source(), "test")
    predicted = deployed.logits(test.images(slice(None))).argmax(1).numpy()
    accuracy = float((predicted == test.labels_N).mean())
    save_weights(folder / "model.safetensors", deployed.module.state_dict(), {"model": config.model.name})
    epochs = read_epochs(folder)
    logger.log(RESULTS, f"clean test accuracy {accuracy:.2%}; weights: {folder / 'model.safetensors'}")
    return StageOutput(
        files=["model.safetensors", EPOCHS],
        facts={"clean_test_accuracy": accuracy, "seconds": sum(epoch["seconds"] for epoch in epochs)},
    )


def training_split(config: Config) -> ArrayDataset:
    """The clean training split, cut to data.max_train_images."""
    data = load_dataset(config.data.source(), "train")
    return data if config.data.max_train_images is None else data.head(config.data.max_train_images)


def pretraining_settings(config: Config) -> Settings:
    """The settings that pretrained weights depend on."""
    others = {"root", "train", "test", "max_test_images", "archive", "corruption_table"}
    return config.settings(include={"seed", "pretrain"}) | {
        "model": config.model.name,
        "preparation": config.model.settings(exclude={"name", "weights", "entry"}),
        "data": config.data.settings(exclude=others),
    }


def _train_here(config: Config, data: ArrayDataset, folder: Place, *, elsewhere: bool) -> DeployedModel:
    """Train from the newest checkpoint on; weights already trained elsewhere are only loaded."""
    progress = None if elsewhere else epoch_progress("pretrain", config.pretrain.epochs, "epochs", folder)

    def on_epoch(epoch: Epoch) -> None:
        log_epoch(folder, epoch)
        if progress is not None:
            show_epochs(progress, folder)

    # With workers the driver needs no GPU of its own.
    device = (
        torch.device("cpu") if elsewhere and not torch.cuda.is_available() else pick_device(config.device)
    )
    return pretrain(
        config.model,
        data,
        dataset_info(config.data.source()),
        config.pretrain,
        seed=config.seed,
        context=LocalContext(folder=folder, device=device),
        folder=folder,
        on_epoch=on_epoch,
    )


def epoch_progress(
    title: str, epochs: int, unit: str, folder: Place, *, core_seconds: float | None = None
) -> Progress:
    """Progress in epochs (or rounds), or in core-seconds if these decide, starting after the epochs already logged."""
    logged = read_epochs(folder)
    if core_seconds is not None:
        spent = int(sum(epoch["core_seconds"] for epoch in logged))
        return Progress(title, math.ceil(core_seconds), CORE_SECONDS, done=spent)
    return Progress(title, epochs, unit, done=len(logged))


def show_epochs(progress: Progress, folder: Place) -> None:
    """Advance `progress` to the last epoch that is logged."""
    logged = read_epochs(folder)
    spent = progress.unit == CORE_SECONDS
    reached = int(sum(epoch["core_seconds"] for epoch in logged)) if spent else len(logged)
    if reached > progress.done:
        progress.advance(reached - progress.done, describe(logged[-1]))


def describe(epoch: dict[str, float]) -> str:
    """A log entry in a few words."""
    accuracy = epoch["validation_accuracy"]
    judged = "" if math.isnan(accuracy) else f"validation {accuracy:.1%}, "
    return f"loss {epoch['loss']:.3f}, {judged}{epoch['images_per_s']:.0f} images/s"


def log_epoch(folder: Place, epoch: Epoch) -> None:
    """Add the epoch to the log. It is logged before its checkpoint, so if trained again, it replaces its own entry."""
    epochs = read_epochs(folder)
    epochs[epoch.epoch - 1 :] = [asdict(epoch)]
    write_text(folder / EPOCHS, json.dumps(epochs))


def read_epochs(folder: Place) -> list[dict[str, float]]:
    """The entries of the log; empty before the first epoch."""
    log = folder / EPOCHS
    if not log.exists():
        return []
    epochs: list[dict[str, float]] = read_json(log)
    return epochs


def epochs_after(folder: Place, epoch: int) -> list[Entry]:
    """The logged metrics of each epoch after `epoch`."""
    return [entry_of(one, "epoch") for one in read_epochs(folder) if one["epoch"] > epoch]

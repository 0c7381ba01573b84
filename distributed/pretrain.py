"""Settings in, a finished training's checkpoint out: pretraining on Ray Train.

The loop is `metarepair.pretrain`; here are only its surroundings. Checkpoints are the run's own, on its storage, so a
training that was begun with Ray goes on without it, with any number of workers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from distributed.train import _user_error
from metarepair.config import Config
from metarepair.pretrain import pretrain
from metarepair.pretrain_stage import describe, epoch_progress, log_epoch, read_epochs, training_split
from metarepair.settings import parse_config
from tasks.datasets import dataset_info
from tasks.storage import Place, place, remove_tree

POLL_S = 1.0


def pretrain_on_ray(config: Config, folder: Place) -> None:
    """Trains on `config.workers` Ray Train workers, each with a share of every step's images.

    A worker group that dies starts again from the last epoch's checkpoint in `folder`.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        _loop,
        train_loop_config={"folder": str(folder), "config": config.model_dump(mode="json")},
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.device == "cuda",
            resources_per_worker={"CPU": config.ray.cpus_per_worker}
            | ({"GPU": config.ray.gpus_per_worker} if config.device == "cuda" else {}),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=config.ray.max_failures),
        ),
    )
    with _watched(config, folder):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _user_error(error) from error
    remove_tree(folder / "ray")  # Ray's own notes


@contextmanager
def _watched(config: Config, folder: Place) -> Iterator[None]:
    """Shows the epochs that rank 0 logs while the block runs."""
    progress, over = epoch_progress(config, folder), threading.Event()

    def show() -> None:
        for epoch in read_epochs(folder)[progress.done :]:
            progress.advance(1, describe(epoch))

    def watch() -> None:
        while not over.wait(POLL_S):
            show()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        show()


def _loop(settings: dict[str, Any]) -> None:
    """One rank's whole life."""
    from distributed.context import RayContext

    config, folder = parse_config(settings["config"]), place(settings["folder"])
    torch.set_num_threads(max(1, int(config.ray.cpus_per_worker)))
    context = RayContext(folder=folder)
    pretrain(
        config.model,
        training_split(config),
        dataset_info(config.data.source()),
        config.pretrain,
        seed=config.seed,
        context=context,
        folder=folder,
        on_epoch=(lambda epoch: log_epoch(folder, epoch)) if context.rank == 0 else (lambda _: None),
    )

"""Pretrain, or train jointly, on a Ray Train group of `workers` workers, up to the last epoch's checkpoint.

The loops are those of `metarepair.pretraining`; this module only runs them on Ray. Checkpoints are the run's own, on
its storage, so a training that was started with Ray can be resumed without it, or with any number of workers. What
happens when a worker dies is described in `distributed.stages.train`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from distributed.on_ray.failures import read_failure, write_failure
from distributed.stages.train import fit
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.pretraining.pretrain import Epoch, pretrain
from metarepair.runs.context import Context
from metarepair.runs.layout import Run
from metarepair.runs.logs import print_on_worker
from metarepair.runs.progress import Progress
from metarepair.runs.watching import watching
from metarepair.stages.joint import joint_progress, train_jointly_here
from metarepair.stages.pretrain import epoch_progress, log_epoch, show_epochs, training_split
from tasks.datasets import dataset_info
from tasks.errors import UserError
from tasks.storage.paths import Place, place, remove_tree

POLL_S = 1.0


def pretrain_on_ray(config: Config, folder: Place) -> None:
    """Train on `config.workers` Ray Train workers, each with a share of every step's images.

    If a worker dies, the group restarts from the last epoch's checkpoint in `folder`.
    """
    with _watched(epoch_progress("pretrain", config.pretrain.epochs, "epochs", folder), folder):
        fit(_loop, {}, config, folder)
    remove_tree(folder / "ray")  # Ray's own records


def train_jointly_on_ray(run: Run, config: Config) -> None:
    """Train jointly on `config.workers` Ray Train workers, each with some groups of every step.

    If a worker dies, the group restarts from the last round's checkpoint.
    """
    with _watched(joint_progress(run, config), run.joint):
        fit(_joint_loop, {"root": str(run.root)}, config, run.joint)
    remove_tree(run.joint / "ray")


@contextmanager
def _watched(progress: Progress, folder: Place) -> Iterator[None]:
    """Show the epochs that rank 0 logs while the block runs."""
    try:
        with watching(lambda: show_epochs(progress, folder), every_s=POLL_S):
            yield
    finally:
        show_epochs(progress, folder)


def _loop(settings: dict[str, Any]) -> None:
    """The pretraining of one rank."""

    folder = place(settings["folder"])

    def train(config: Config, context: Context, on_epoch: Callable[[Epoch], None]) -> None:
        pretrain(
            config.model,
            training_split(config),
            dataset_info(config.data.source()),
            config.pretrain,
            seed=config.seed,
            context=context,
            folder=folder,
            on_epoch=on_epoch,
        )

    _train_rank(settings, train)


def _joint_loop(settings: dict[str, Any]) -> None:
    """The joint training of one rank."""
    run = Run(place(settings["root"]))
    _train_rank(settings, partial(train_jointly_here, run))


def _train_rank(
    settings: dict[str, Any], train: Callable[[Config, Context, Callable[[Epoch], None]], object]
) -> None:
    """Call `train` on one rank, and let rank 0 log the epochs."""
    from distributed.on_ray.context import RayContext

    print_on_worker()
    config, folder = parse_config(settings["config"]), place(settings["folder"])
    if read_failure(folder) is not None:
        return
    torch.set_num_threads(max(1, int(config.ray.cpus_per_worker)))
    context = RayContext(folder=folder)
    try:
        train(config, context, partial(log_epoch, folder) if context.rank == 0 else lambda _: None)
    except UserError as error:
        write_failure(folder, error)
        raise

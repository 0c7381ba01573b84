"""Meta-train on a Ray Train group of `workers` workers.

The loop is `metarepair.meta_training.meta_train`; `metarepair.stages.train` builds the trainer, and
`metarepair.meta_training.task_source` draws the tasks.

When a worker dies, Ray Train stops the rest of its group and starts a new group, at most `ray.max_failures` times in a
run. With `ray.min_workers`, the new group may be smaller. It resumes from the newest complete checkpoint on storage and
repeats the episodes after it; each repeated episode draws the same tasks, as they are keyed by seed, episode and slot.
If workers are lost more often, the training ends with WorkerError, and the same command resumes it. A UserError would
recur, so it ends the training instead (`distributed.on_ray.failures`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distributed.on_ray.cluster import worker_resources
from distributed.on_ray.corruption_plugins import Versions, check_worker, plugins_of
from distributed.on_ray.failures import read_failure, user_error, write_failure
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.meta_training.meta_train import meta_train
from metarepair.runs.context import last_report
from metarepair.runs.layout import Run, run_at
from metarepair.runs.logs import print_on_worker
from metarepair.runs.progress import Progress
from metarepair.runs.watching import watching
from metarepair.stages.train import build_trainer, inputs_of, show_metrics, training_progress
from tasks.errors import UserError
from tasks.storage.paths import Place, place


def train_on_ray(run: Run, config: Config, target: str) -> None:
    """Meta-train on `config.workers` Ray Train workers. If a worker dies, the group restarts from its checkpoint."""
    folder = run.meta(target)
    settings = {"root": str(run.root), "target": target}
    with _watched(training_progress(run, config, target), folder):
        fit(_loop, settings, config, folder)


def fit(loop: Any, settings: dict[str, Any], config: Config, folder: Place, **run_options: Any) -> None:
    """Run `loop` on every worker of a Ray Train group, with `settings` and the configuration; the group owns `folder`.

    Raises the UserError that a worker raised, WorkerError if workers were lost more often than `ray.max_failures`, and
    Ray Train's own TrainingFailedError for errors in our code.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    least, most = config.ray.min_workers or config.workers, config.workers
    trainer = TorchTrainer(
        _checked(loop, plugins_of(config), folder),
        train_loop_config={**settings, "config": config.model_dump(mode="json"), "folder": str(folder)},
        torch_config=TorchConfig(timeout_s=config.ray.timeout_s),
        scaling_config=ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=config.device == "cuda",
            resources_per_worker=worker_resources(config),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=config.ray.max_failures),
            **run_options,
        ),
    )
    write_failure(folder, None)
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise read_failure(folder) or user_error(error) from error
    failure = read_failure(folder)
    if failure is not None:
        raise failure


def _checked(loop: Callable[[Any], None], plugins: Versions, folder: Place) -> Callable[[Any], None]:
    """`loop`, preceded on each rank by a check of its corruption plugins."""

    def run(settings: Any) -> None:
        if read_failure(folder) is not None:
            return
        try:
            check_worker(plugins)
        except UserError as error:
            write_failure(folder, error)
            raise
        loop(settings)

    return run


@contextmanager
def _watched(progress: Progress, folder: Place) -> Iterator[None]:
    """Show rank 0's newest report every second while the block runs."""

    def show() -> None:
        metrics = last_report(folder)
        if metrics is not None:
            show_metrics(progress, metrics)

    with watching(show, every_s=1.0):
        yield


def _loop(settings: dict[str, Any]) -> None:
    """The training function of one rank."""
    from distributed.on_ray.context import RayContext

    print_on_worker()
    target, config = settings["target"], parse_config(settings["config"])
    run = run_at(place(settings["root"]), config)
    context = RayContext(folder=run.meta(target), kept=config.train.kept_checkpoints)
    if read_failure(context.folder) is not None:
        return
    try:
        meta_train(build_trainer(inputs_of(run, config, target), config, context))
    except UserError as error:
        write_failure(context.folder, error)
        raise

"""Experiences and confidence in, θ_meta out: the training loop on Ray Train, or in this process.

Source: paper Algorithm 1, lines 2-12. The loop is `metarepair.meta_training.meta_train`.
Here are only its surroundings.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from distributed.on_ray.cluster import worker_resources
from distributed.on_ray.failures import read_failure, user_error, write_failure
from metarepair.adaptation.meta_test import repair_data
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.data.workspace import load_surroundings
from metarepair.features.confidence_tables import read_confidence
from metarepair.meta_training.inputs import TrainingInputs
from metarepair.meta_training.meta_train import MetaTrainer, meta_train
from metarepair.meta_training.task_source import TaskSource
from metarepair.runs.checkpoint import Say, newest_checkpoint, read_state
from metarepair.runs.context import Context, LocalContext, Metrics, last_report
from metarepair.runs.layout import Run
from metarepair.runs.progress import Progress
from tasks.errors import UserError
from tasks.experiences.store import open_side
from tasks.records import Experience
from tasks.storage.manifest import require_manifest
from tasks.storage.paths import Place, place

MINE_FIRST = "Mine it first: metarepair mine --config …"


def inputs_of(run: Run, target: str) -> TrainingInputs:
    """What training for a target reads of a mined and scored run."""
    confidence = read_confidence(run, target)
    return TrainingInputs(
        target=target,
        experiences={name: run.experience(name) for name in confidence.names},
        collect=run.target(target),
        split="test",
        confidence=confidence,
    )


def build_trainer(inputs: TrainingInputs, config: Config, context: Context) -> MetaTrainer:
    """Everything a rank needs, from storage: experiences as memory maps, confidence, validation part."""
    torch.set_num_threads(config.train.threads)
    here = load_surroundings(config, device=context.device)
    here.deployed.module.to(torch.float64 if config.train.precision == "float64" else torch.float32)
    experiences = {}
    for name, folder in inputs.experiences.items():
        manifest = require_manifest(folder, MINE_FIRST)
        experiences[name] = Experience(
            corruption=name,
            collect=open_side(folder, "collect", manifest, here.split("train")),
            fail=open_side(folder, "fail", manifest, here.split("train")),
        )
    mined = require_manifest(inputs.collect, MINE_FIRST)
    collect = open_side(inputs.collect, "collect", mined, here.split(inputs.split))
    source = TaskSource(
        deployed=here.deployed,
        experiences=experiences,
        confidence=inputs.confidence,
        config=config,
        clean=here.clean() if config.train.clean_weight > 0 or config.task.clean_support > 0 else None,
        train=here.split("train") if config.train.clean_corrupted > 0 else None,
    )
    validation = replace(repair_data(collect, config, seed=0), clean=source.clean)
    return MetaTrainer(source, config, context, validation=validation)


def train_here(run: Run, config: Config, target: str, device: torch.device, say: Say) -> None:
    """Meta-trains in this process, without Ray."""
    kept = config.train.kept_checkpoints
    context = LocalContext(folder=run.meta(target), device=device, say=say, kept=kept)
    trainer = build_trainer(inputs_of(run, target), config, context)
    progress = _progress(run, config, target, lambda _: None)  # the context says what is damaged
    context.on_report = lambda metrics: _show(progress, metrics)
    meta_train(trainer)


def _progress(run: Run, config: Config, target: str, say: Say) -> Progress:
    checkpoint = newest_checkpoint(run.meta(target), say)
    state = read_state(checkpoint) if checkpoint is not None else None
    done = 0 if state is None else int(state["episode"])
    return Progress(f"train {target}", config.train.episodes, "episodes", done=done)


def _show(progress: Progress, metrics: Metrics) -> None:
    progress.advance(int(metrics["episode"]) - progress.done, describe(metrics))


def describe(metrics: Metrics) -> str:
    """The metrics of a report in a few words."""
    if "skipped" in metrics:
        return f"not finite and skipped, {metrics['skipped']:.0f} so far"
    text = f"query loss {metrics['query_loss']:.3f}, query accuracy {metrics['query_accuracy']:.1%}"
    if "validation_accuracy" in metrics:
        text += f", validation {metrics['validation_accuracy']:.1%}"
    return text


def train_on_ray(run: Run, config: Config, target: str, say: Say) -> None:
    """Meta-trains on `config.workers` Ray Train workers. A killed worker group starts again from its checkpoint."""
    folder = run.meta(target)
    settings = {"root": str(run.root), "target": target}
    with _watched(_progress(run, config, target, say), folder):
        fit(_loop, settings, config, folder)


def fit(loop: Any, settings: dict[str, Any], config: Config, folder: Place, **run_options: Any) -> None:
    """Runs `loop` on every worker of a Ray Train group, with `settings` and the configuration; `folder` is its own.

    Raises the UserError that a worker raised, WorkerError when the group was lost too often, and what Ray Train raises
    of errors in our own code.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    least, most = config.ray.min_workers or config.workers, config.workers
    trainer = TorchTrainer(
        loop,
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


@contextmanager
def _watched(progress: Progress, folder: Place) -> Iterator[None]:
    """Shows what rank 0 last reported, every second, while the block runs."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            metrics = last_report(folder)
            if metrics is not None and metrics["episode"] > progress.done:
                _show(progress, metrics)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _loop(settings: dict[str, Any]) -> None:
    """One rank's whole life."""
    from distributed.on_ray.context import RayContext

    run, target, config = Run(place(settings["root"])), settings["target"], parse_config(settings["config"])
    context = RayContext(folder=run.meta(target), kept=config.train.kept_checkpoints)
    if read_failure(context.folder) is not None:
        return
    try:
        meta_train(build_trainer(inputs_of(run, target), config, context))
    except UserError as error:
        write_failure(context.folder, error)
        raise

"""Experiences and confidence in, θ_meta out: the training loop on Ray Train, or in this process.

Source: paper Algorithm 1, lines 2-12. The loop is `metarepair.meta_train`; here are only its surroundings.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from metarepair.checkpoint import newest_checkpoint, read_state
from metarepair.config import Config
from metarepair.context import Context, LocalContext, Metrics, last_report
from metarepair.deploy import load_surroundings
from metarepair.layout import Run
from metarepair.meta_test import repair_data
from metarepair.meta_train import MetaTrainer, meta_train
from metarepair.progress import Progress
from metarepair.score import read_confidence
from metarepair.settings import parse_config
from metarepair.task_source import TaskSource
from tasks.errors import UserError
from tasks.manifest import require_manifest
from tasks.records import Experience
from tasks.storage import place
from tasks.store import open_side

MINE_FIRST = "Mine it first: metarepair mine --config …"


def build_trainer(run: Run, config: Config, target: str, context: Context) -> MetaTrainer:
    """Everything a rank needs, from the run's folder: experiences as memory maps, confidence, validation part."""
    torch.set_num_threads(config.train.threads)
    here = load_surroundings(config, device=context.device)
    here.deployed.module.to(torch.float64 if config.train.precision == "float64" else torch.float32)
    confidence = read_confidence(run, target)
    experiences = {}
    for name in confidence.names:
        folder = run.experience(name)
        manifest = require_manifest(folder, MINE_FIRST)
        experiences[name] = Experience(
            corruption=name,
            collect=open_side(folder, "collect", manifest, here.split("train")),
            fail=open_side(folder, "fail", manifest, here.split("train")),
        )
    mined = require_manifest(run.target(target), MINE_FIRST)
    collect = open_side(run.target(target), "collect", mined, here.split("test"))
    source = TaskSource(
        deployed=here.deployed,
        experiences=experiences,
        confidence=confidence,
        config=config,
        clean=here.split("train") if config.train.clean_weight > 0 else None,
    )
    return MetaTrainer(source, config, context, validation=repair_data(collect, config, seed=0))


def train_here(run: Run, config: Config, target: str, device: torch.device) -> None:
    """Meta-trains in this process, without Ray."""
    context = LocalContext(folder=run.meta(target) / "checkpoints", device=device)
    trainer = build_trainer(run, config, target, context)
    progress = _progress(run, config, target)
    context.on_report = lambda metrics: _show(progress, metrics)
    meta_train(trainer)


def _progress(run: Run, config: Config, target: str) -> Progress:
    checkpoint = newest_checkpoint(run.meta(target))
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


def train_on_ray(run: Run, config: Config, target: str) -> None:
    """Meta-trains on `config.workers` Ray Train workers. A killed worker group starts again from its checkpoint."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        _loop,
        train_loop_config={"root": str(run.root), "config": config.model_dump(mode="json"), "target": target},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=config.device == "cuda"),
        run_config=RunConfig(
            name="ray",
            storage_path=str(run.meta(target)),
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    with _watched(run, config, target):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _user_error(error) from error


@contextmanager
def _watched(run: Run, config: Config, target: str) -> Iterator[None]:
    """Shows what rank 0 last reported, every second, while the block runs."""
    progress, over = _progress(run, config, target), threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            metrics = last_report(run.meta(target))
            if metrics is not None and metrics["episode"] > progress.done:
                _show(progress, metrics)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _user_error(error: BaseException) -> BaseException:
    """The UserError that a worker raised, if that is what ended the run; else the error itself."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        cause: Any = failure
        while cause is not None:
            if isinstance(cause, UserError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    return error


def _loop(settings: dict[str, Any]) -> None:
    """One rank's whole life."""
    from distributed.context import RayContext

    run, target = Run(place(settings["root"])), settings["target"]
    config = parse_config(settings["config"])
    context = RayContext(folder=run.meta(target))
    meta_train(build_trainer(run, config, target, context))

"""Repaired DNNs in, how they do on D_fail, the whole corrupted set, clean images and other corruptions out.

The evaluator alone opens a target's D_fail, after every repair of that target is made and saved, and writes down
when it did. Source: paper Eq. 6, Algorithm 1 lines 19-23; repair and break rate: Sohn et al. 2022.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch
from numpy.typing import NDArray

from metarepair.config import Config
from metarepair.inner import FunctionalNet, InnerRule
from metarepair.layout import Run
from metarepair.meta_test import accuracy_on, predict
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel
from metarepair.vectors import State
from tasks.corruptions import CORRUPTIONS
from tasks.datasets import Dataset
from tasks.environment import corrupted_images
from tasks.keys import keyed_generator
from tasks.manifest import require_manifest
from tasks.records import Failures, Ints, RepairResult
from tasks.storage import append_line
from tasks.store import open_side

# N examples, B images, K classes, M models

Called = tuple[FunctionalNet, State, State]  # with its parameters and buffers


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A repaired DNN to be judged, with its seed, its accuracy on validation, and what its repair took.

    memory_bytes: the most memory that the repair had, None where it was not measured.
    """

    model: RepairedModel
    seed: int
    seconds: float
    validation: float
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Results in the order of the candidates; every D_fail example, and every clean test image, before and after each.

    clean_MN: predictions on the clean test images, clean_before_N the deployed DNN's, clean_labels_N what is right.
    """

    results: tuple[RepairResult, ...]
    fail: Failures
    predicted_MN: NDArray[np.int64]
    clean_before_N: NDArray[np.int64]
    clean_MN: NDArray[np.int64]
    clean_labels_N: Ints


def open_target_fail(run: Run, target: str, test: Dataset, *, judged: Sequence[str] = ()) -> Failures:
    """D_fail of a target. Every opening is logged with its time, and what is `judged` by it."""
    manifest = require_manifest(run.target(target), "Mine it first: metarepair mine.")
    line = {"target": target, "opened": datetime.now(UTC).isoformat(), "judged": list(judged)}
    append_line(run.d_fail_log, json.dumps(line))
    return open_side(run.target(target), "fail", manifest, test)


@dataclass(frozen=True, kw_only=True)
class _Predictions:
    """Predicted classes on the test split, [1 + M, N] each: the deployed DNN first, then each candidate."""

    clean: NDArray[np.int64]
    corrupted: dict[int, NDArray[np.int64]]
    others: dict[str, NDArray[np.float64]]


def evaluate(
    run: Run,
    config: Config,
    target: str,
    deployed: DeployedModel,
    test: Dataset,
    candidates: Sequence[Candidate],
    *,
    progress: Callable[[str], None],
) -> Judged:
    """Judges all candidates on the same images; all predictions on corrupted images are of the same pixels.

    D_fail is opened last.
    """
    models = [c.model for c in candidates]
    nets = _called(deployed, models)
    rows = np.arange(len(test.labels_N))
    clean = _predict_all(deployed, nets, test, rows, None, 0, config)
    progress(f"{target}: clean images done")
    corrupted = {
        s: _predict_all(deployed, nets, test, rows, target, s, config) for s in config.mining.severities
    }
    progress(f"{target}: corrupted set done")
    names = tuple(CORRUPTIONS) if config.evaluate.others is None else config.evaluate.others
    others = {n: _other(deployed, nets, test, n, config) for n in names if n != target}
    progress(f"{target}: other corruptions done")
    predictions = _Predictions(clean=clean, corrupted=corrupted, others=others)
    fail = open_target_fail(run, target, test, judged=[f"{c.model.method}/{c.seed}" for c in candidates])
    logits = [predict(m.architecture_of(deployed), m.parameters, m.buffers, fail) for m in models]
    predicted_MN = np.stack([x.argmax(1).numpy() for x in logits])
    results = []
    for index, candidate in enumerate(candidates):
        rate = float((predicted_MN[index] == fail.labels_N).mean())
        results.append(_result(index, rate, candidate, target, deployed, test, predictions, fail, config))
        progress(f"{target}: {candidate.model.method} seed {candidate.seed} judged on D_fail")
    return Judged(
        results=tuple(results),
        fail=fail,
        predicted_MN=predicted_MN,
        clean_before_N=clean[0],
        clean_MN=clean[1:],
        clean_labels_N=test.labels_N,
    )


def _result(
    index: int,
    repair_rate: float,
    candidate: Candidate,
    target: str,
    deployed: DeployedModel,
    test: Dataset,
    predictions: _Predictions,
    fail: Failures,
    config: Config,
) -> RepairResult:
    """One row of the table: candidate `index`, whose repair rate is its accuracy on D_fail."""
    paper, episodes = _paper_accuracies(deployed, candidate, fail, config)
    labels, row = test.labels_N, index + 1
    severities = {str(s): _accuracy(p[row], labels) for s, p in predictions.corrupted.items()}
    return RepairResult(
        method=candidate.model.method,
        target=target,
        seed=candidate.seed,
        d_fail=repair_rate,
        d_fail_paper=paper,
        d_fail_episodes_mean=float(np.mean(episodes)) if episodes else None,
        d_fail_episodes_sd=float(np.std(episodes, ddof=1)) if len(episodes) > 1 else None,
        validation=candidate.validation,
        corrupted=float(np.mean(list(severities.values()))),
        corrupted_by_severity=severities,
        clean=_accuracy(predictions.clean[row], labels),
        clean_before=_accuracy(predictions.clean[0], labels),
        other_corruptions={name: float(values[row]) for name, values in predictions.others.items()},
        repair_rate=repair_rate,
        break_rate=_broken([(predictions.clean[0], predictions.clean[row])], labels),
        break_rate_corrupted=_broken([(p[0], p[row]) for p in predictions.corrupted.values()], labels),
        calibration_error=_calibration(deployed, candidate.model, test, target, config),
        seconds=candidate.seconds,
        memory_bytes=candidate.memory_bytes,
        images_seen=candidate.model.images_seen,
        gradient_steps=candidate.model.gradient_steps,
        notes=candidate.model.notes,
    )


def _net(deployed: DeployedModel) -> FunctionalNet:
    return FunctionalNet(deployed.module, InnerRule(steps=1, rate=1.0, batch_norm="frozen"))


def _called(deployed: DeployedModel, models: Sequence[RepairedModel]) -> list[Called]:
    """What predicts: the deployed DNN, then each model."""
    net = _net(deployed)
    others = [(_net(m.architecture_of(deployed)), m.parameters, m.buffers) for m in models]
    return [(net, net.parameters(), net.buffers()), *others]


def _images(test: Dataset, rows: Ints, corruption: str | None, severity: int, config: Config) -> np.ndarray:
    if corruption is None:
        return test.images(rows)
    return corrupted_images(test, rows, corruption=corruption, severity=severity, seed=config.seed)


def _predict_all(
    deployed: DeployedModel,
    nets: Sequence[Called],
    test: Dataset,
    rows: Ints,
    corruption: str | None,
    severity: int,
    config: Config,
) -> NDArray[np.int64]:
    """Predicted classes [1 + M, N]: the deployed DNN first, then each model."""
    columns = []
    for start in range(0, len(rows), config.mining.batch_size):
        batch = rows[start : start + config.mining.batch_size]
        x_BCHW = deployed.normalise(_images(test, batch, corruption, severity, config))
        columns.append(np.stack([n.logits(p, b, x_BCHW).argmax(1).cpu().numpy() for n, p, b in nets]))
    return np.concatenate(columns, axis=1)


def _other(
    deployed: DeployedModel, nets: Sequence[Called], test: Dataset, corruption: str, config: Config
) -> NDArray[np.float64]:
    """Accuracy [1 + M] on another corruption, pooled over severities, on the same random test images for all."""
    size = min(config.evaluate.others_images, len(test.labels_N))
    rows = np.sort(keyed_generator("others", config.seed).permutation(len(test.labels_N))[:size])
    right = [
        _predict_all(deployed, nets, test, rows, corruption, severity, config) == test.labels_N[rows]
        for severity in config.mining.severities
    ]
    accuracies: NDArray[np.float64] = np.mean(right, axis=(0, 2))
    return accuracies


def _accuracy(predicted_N: Ints, labels_N: Ints) -> float:
    return float((predicted_N == labels_N).mean())


def _broken(pairs: Sequence[tuple[Ints, Ints]], labels_N: Ints) -> float:
    """Share of what was right before that is wrong after."""
    right_before = sum(int((before == labels_N).sum()) for before, _ in pairs)
    broken = sum(int(((before == labels_N) & (after != labels_N)).sum()) for before, after in pairs)
    return broken / max(right_before, 1)


def _paper_accuracies(
    deployed: DeployedModel, candidate: Candidate, fail: Failures, config: Config
) -> tuple[float | None, list[float]]:
    """The mean acc_s over M × S tasks (line 23), and the accuracy on all of D_fail at each episode's end."""
    if candidate.model.steps is None:
        return None, []
    task_accuracies, episode_accuracies = [], []
    for step in candidate.model.steps():
        generator = keyed_generator("repair-query", config.seed, candidate.seed, step.episode, step.slot)
        rows = generator.choice(len(fail), size=min(config.task.query_size, len(fail)), replace=False)
        query = fail.take(np.sort(rows))
        task_accuracies.append(accuracy_on(deployed, step.parameters, step.buffers, query))
        if step.slot == config.repair.tasks - 1:
            episode_accuracies.append(accuracy_on(deployed, step.parameters, step.buffers, fail))
    return float(np.mean(task_accuracies)), episode_accuracies


def _calibration(
    deployed: DeployedModel, model: RepairedModel, test: Dataset, target: str, config: Config, bins: int = 15
) -> float:
    """Expected calibration error (Guo et al. 2017) on up to 2,000 corrupted test images per severity."""
    net, rows = _net(model.architecture_of(deployed)), np.arange(min(len(test.labels_N), 2000))
    confidences, rights = [], []
    for severity in config.mining.severities:
        for start in range(0, len(rows), config.mining.batch_size):
            batch = rows[start : start + config.mining.batch_size]
            x_BCHW = deployed.normalise(_images(test, batch, target, severity, config))
            p_BK = torch.softmax(net.logits(model.parameters, model.buffers, x_BCHW).float(), dim=1).cpu()
            top, predicted = p_BK.max(1)
            confidences.append(top.numpy())
            rights.append(predicted.numpy() == test.labels_N[batch])
    confidence_N, right_N = np.concatenate(confidences), np.concatenate(rights)
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    gaps = [
        abs(confidence_N[bin_N == b].mean() - right_N[bin_N == b].mean()) * (bin_N == b).mean()
        for b in np.unique(bin_N)
    ]
    return float(np.sum(gaps))

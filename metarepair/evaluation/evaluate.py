"""Measures repaired DNNs on D_fail, the whole corrupted set, clean images and other corruptions.

Only the evaluator opens a target's D_fail. It does so after every repair of that target is saved, and logs the time.
Source: paper Eq. 6 and Algorithm 1, lines 20 and 23; repair and break rate: Sohn et al. 2022.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from metarepair.adaptation.accuracy import accuracy_on
from metarepair.config.run import Config
from metarepair.evaluation.predictions import Called, Predictions, called, predict_all, predicted_on
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel
from metarepair.runs.layout import Run
from tasks.corruptions import CORRUPTIONS
from tasks.datasets import Dataset
from tasks.experiences.store import open_side
from tasks.keys import keyed_generator
from tasks.records import Failures, Ints, RepairResult
from tasks.storage.manifest import require_manifest
from tasks.storage.paths import append_line

# N examples, M models

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A repaired DNN to evaluate, with its seed, its accuracy on validation, and the cost of its repair.

    memory_bytes: the peak memory of the repair, None if it was not measured.
    """

    model: RepairedModel
    seed: int
    seconds: float
    validation: float
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Results in the order of the candidates, and the predictions on D_fail and on the clean test images.

    predicted_MN: predictions of the M candidates on D_fail. clean_MN: theirs on the clean test images. clean_before_N:
    the deployed DNN's on the same images. clean_labels_N: the labels of these images.
    """

    results: tuple[RepairResult, ...]
    fail: Failures
    predicted_MN: NDArray[np.int64]
    clean_before_N: NDArray[np.int64]
    clean_MN: NDArray[np.int64]
    clean_labels_N: Ints


def open_target_fail(run: Run, target: str, test: Dataset, *, judged: Sequence[str] = ()) -> Failures:
    """D_fail of a target. Each call adds a line to the run's log of openings: the time, and what is `judged` on it."""
    manifest = require_manifest(run.target(target), "Mine it first: metarepair mine.")
    line = {"target": target, "opened": datetime.now(UTC).isoformat(), "judged": list(judged)}
    append_line(run.d_fail_log, json.dumps(line))
    return open_side(run.target(target), "fail", manifest, test)


@dataclass(frozen=True, kw_only=True)
class _TestMeasures:
    """Predictions on clean test images and by severity of the target's corruption; accuracy on other corruptions."""

    clean: Predictions
    corrupted: dict[int, Predictions]
    others: dict[str, NDArray[np.float64]]  # [1 + M] each


def evaluate(
    run: Run,
    config: Config,
    target: str,
    deployed: DeployedModel,
    test: Dataset,
    candidates: Sequence[Candidate],
) -> Judgement:
    """Evaluate all candidates on the same images; a corrupted image has the same pixels for all of them.

    D_fail is opened last.
    """
    models = [c.model for c in candidates]
    nets = called(deployed, models)
    rows = np.arange(len(test.labels_N))
    clean = predict_all(deployed, nets, test, rows, None, 0, config)
    logger.info(f"{target}: clean images done")
    corrupted = {}
    for severity in config.mining.severities:
        corrupted[severity] = predict_all(deployed, nets, test, rows, target, severity, config)
        logger.info(f"{target}: severity {severity} done")
    names = tuple(CORRUPTIONS) if config.evaluate.others is None else config.evaluate.others
    others = {n: _other(deployed, nets, test, n, config) for n in names if n != target}
    logger.info(f"{target}: other corruptions done")
    measures = _TestMeasures(clean=clean, corrupted=corrupted, others=others)
    fail = open_target_fail(run, target, test, judged=[f"{c.model.method}/{c.seed}" for c in candidates])
    predicted_MN = predicted_on(fail, deployed, models, test, corrupted)
    results = []
    for index, candidate in enumerate(candidates):
        rate = float((predicted_MN[index] == fail.labels_N).mean())
        results.append(
            _result(index, rate, candidate, target, deployed, test.labels_N, measures, fail, config)
        )
        logger.info(f"{target}: {candidate.model.method} seed {candidate.seed} judged on D_fail")
    return Judgement(
        results=tuple(results),
        fail=fail,
        predicted_MN=predicted_MN,
        clean_before_N=clean.classes[0],
        clean_MN=clean.classes[1:],
        clean_labels_N=test.labels_N,
    )


def _result(
    index: int,
    repair_rate: float,
    candidate: Candidate,
    target: str,
    deployed: DeployedModel,
    labels_N: Ints,
    measures: _TestMeasures,
    fail: Failures,
    config: Config,
) -> RepairResult:
    """One row of the table: candidate `index`, whose repair rate is its accuracy on D_fail."""
    paper, episodes = _paper_accuracies(deployed, candidate, fail, config)
    row, corrupted = index + 1, measures.corrupted
    severities = {str(s): _accuracy(p.classes[row], labels_N) for s, p in corrupted.items()}
    clean_before_N, clean_N = measures.clean.classes[0], measures.clean.classes[row]
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
        clean=_accuracy(clean_N, labels_N),
        clean_before=_accuracy(clean_before_N, labels_N),
        other_corruptions={name: float(values[row]) for name, values in measures.others.items()},
        repair_rate=repair_rate,
        break_rate=_broken([(clean_before_N, clean_N)], labels_N),
        break_rate_corrupted=_broken([(p.classes[0], p.classes[row]) for p in corrupted.values()], labels_N),
        calibration_error=_calibration(
            [(p.confidence[row], p.classes[row]) for p in corrupted.values()], labels_N
        ),
        seconds=candidate.seconds,
        memory_bytes=candidate.memory_bytes,
        images_seen=candidate.model.images_seen,
        gradient_steps=candidate.model.gradient_steps,
        notes=candidate.model.notes,
    )


def _other(
    deployed: DeployedModel, nets: Sequence[Called], test: Dataset, corruption: str, config: Config
) -> NDArray[np.float64]:
    """Accuracy [1 + M] on another corruption, over all severities of the same random test images for all DNNs."""
    size = min(config.evaluate.others_images, len(test.labels_N))
    rows = np.sort(keyed_generator("others", config.seed).permutation(len(test.labels_N))[:size])
    right = [
        predict_all(deployed, nets, test, rows, corruption, severity, config).classes == test.labels_N[rows]
        for severity in config.mining.severities
    ]
    accuracies: NDArray[np.float64] = np.mean(right, axis=(0, 2))
    return accuracies


def _accuracy(predicted_N: Ints, labels_N: Ints) -> float:
    return float((predicted_N == labels_N).mean())


def _broken(pairs: Sequence[tuple[Ints, Ints]], labels_N: Ints) -> float:
    """Share of images that were right before the repair and are wrong after it, among those right before."""
    right_before = sum(int((before == labels_N).sum()) for before, _ in pairs)
    broken = sum(int(((before == labels_N) & (after != labels_N)).sum()) for before, after in pairs)
    return broken / max(right_before, 1)


def _paper_accuracies(
    deployed: DeployedModel, candidate: Candidate, fail: Failures, config: Config
) -> tuple[float | None, list[float]]:
    """The mean of acc_s over M × S tasks (lines 20 and 23), and the accuracy on all of D_fail after each episode."""
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


def _calibration(pairs: Sequence[tuple[NDArray[np.float32], Ints]], labels_N: Ints, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017) of confidences and predicted classes, pooled over the pairs."""
    confidence_N = np.concatenate([confidence for confidence, _ in pairs])
    right_N = np.concatenate([classes == labels_N for _, classes in pairs])
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    gaps = [
        abs(confidence_N[bin_N == b].mean() - right_N[bin_N == b].mean()) * (bin_N == b).mean()
        for b in np.unique(bin_N)
    ]
    return float(np.sum(gaps))

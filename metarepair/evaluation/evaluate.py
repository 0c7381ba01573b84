"""Measure repaired DNNs on D_fail, the target's environment, clean images and other environments.

Only the evaluator opens a target's D_fail. It does so after every repair of that target is saved, and logs the time.
Source: paper Eq. 6 and Algorithm 1, lines 20 and 23; repair and break rate: Sohn et al. 2022.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarepair.adaptation.accuracy import accuracy_on
from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings
from metarepair.evaluation.calibration import calibration_bins, calibration_error
from metarepair.evaluation.judging import Judging, judging_of, sample_of
from metarepair.evaluation.predictions import Predictions, called, predict_all, predicted_on
from metarepair.evaluation.side_effects import CLEAN, JudgedImages
from metarepair.methods.budget import Cost
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel
from metarepair.runs.layout import Run
from tasks.corruptions import CORRUPTIONS
from tasks.environments import AS_GIVEN, Environment, UserImages
from tasks.experiences.store import open_side
from tasks.keys import keyed_generator
from tasks.records import Failures, Ints, Pixels, RepairResult
from tasks.splits import JUDGE
from tasks.splits.digests import Digests
from tasks.storage.manifest import require_manifest
from tasks.storage.paths import append_line
from tasks.storage.stages import TARGET

# N examples, M models

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A repaired DNN to evaluate, with its seed, its accuracy on validation, and the cost of its repair.

    memory_bytes: the peak memory of the repair, None if it was not measured. selection: how it was chosen inside
    limits; None without limits.
    """

    model: RepairedModel
    seed: int
    cost: Cost
    validation: float
    memory_bytes: int | None = None
    selection: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Results in the order of the candidates, and the predictions on D_fail and on the clean test images.

    predicted_MN: predictions of the M candidates on D_fail. clean_rows_N: the rows of the clean test images that judge.
    clean_MN: the candidates' predictions on them. clean_before_N: the deployed DNN's. clean_labels_N: their labels.
    judging: how many images judged, by which protocol.
    seen: all images that judged, with all predictions: clean ones, the target's, and those of other environments.
    class_names: in the order of the classes' numbers.
    """

    results: tuple[RepairResult, ...]
    fail: Failures
    predicted_MN: NDArray[np.int64]
    clean_rows_N: Ints
    clean_before_N: NDArray[np.int64]
    clean_MN: NDArray[np.int64]
    clean_labels_N: Ints
    judging: Judging
    seen: tuple[JudgedImages, ...]
    class_names: tuple[str, ...]


def open_target_fail(
    run: Run,
    target: str,
    source: Environment,
    *,
    judged: Sequence[str] = (),
    judging: Mapping[str, Digests] | None = None,
) -> Failures:
    """D_fail of a target. Each call adds a line to the run's log of openings.

    The line holds the time, what is `judged`, and a sample of the images that judge it, from their digests by the
    environment's name (`judging`).
    """
    manifest = require_manifest(run.target(target), TARGET.remedy)
    images = {name: sample_of(digests_N) for name, digests_N in (judging or {}).items()}
    line = {
        "target": target,
        "opened": datetime.now(UTC).isoformat(),
        "judged": list(judged),
        "images": images,
    }
    append_line(run.d_fail_log, json.dumps(line))
    return open_side(run.target(target), "fail", manifest, source)


@dataclass(frozen=True, kw_only=True)
class _Measures:
    """Predictions on the images that judge: clean ones, and the target's environment by severity, with their labels.

    others: accuracy in other environments, [1 + M] each.
    """

    clean: Predictions
    clean_labels_N: Ints
    corrupted: dict[int, Predictions]
    labels_N: Ints
    others: dict[str, NDArray[np.float64]]


def evaluate(
    run: Run, config: Config, target: str, here: Surroundings, candidates: Sequence[Candidate]
) -> Judgement:
    """Evaluate all candidates on the same images; a corrupted image has the same pixels for all of them.

    Nothing was learned from these images, and nothing was chosen by them. D_fail is opened last.
    """
    deployed, test, source = here.deployed, here.split("test"), here.environment("test", target)
    models = [c.model for c in candidates]
    predict = partial(predict_all, deployed, called(deployed, models), batch_size=config.mining.batch_size)
    clean_rows = here.judged_rows(target, _collected_ids(run, target))
    clean = predict(test.images, clean_rows)
    logger.info(f"{target}: clean images done")
    rows = _judging_rows(source, clean_rows)
    corrupted = {}
    for severity in source.severities:
        corrupted[severity] = predict(partial(source.images, severity=severity), rows)
        logger.info(f"{target}: severity {severity} done")
    names = tuple(CORRUPTIONS) if config.evaluate.others is None else config.evaluate.others
    shown = {n: _other(predict, here, n, clean_rows, config) for n in names if n != target}
    logger.info(f"{target}: other environments done")
    measures = _Measures(
        clean=clean,
        clean_labels_N=test.labels_N[clean_rows],
        corrupted=corrupted,
        labels_N=source.labels_N[rows],
        others={name: (other.seen.classes == other.seen.labels_N).mean(1) for name, other in shown.items()},
    )
    clean_seen = JudgedImages(
        name=CLEAN,
        image_ids_N=clean_rows,
        severities_N=np.full(len(clean_rows), AS_GIVEN),
        kinds_N=np.full(len(clean_rows), ""),
        labels_N=measures.clean_labels_N,
        classes=clean.classes,
        confidence=clean.confidence,
    )
    digests = {target: np.concatenate([p.digests_N for p in corrupted.values()])}
    digests |= {name: other.digests_N for name, other in shown.items()}
    judged = [f"{c.model.method}/{c.seed}" for c in candidates]
    fail = open_target_fail(run, target, source, judged=judged, judging=digests)
    predicted_MN = predicted_on(fail, deployed, models, source.image_ids_N[rows], corrupted)
    results = []
    for index, candidate in enumerate(candidates):
        rate = float((predicted_MN[index] == fail.labels_N).mean())
        results.append(_result(index, rate, candidate, target, deployed, measures, fail, config))
        logger.info(f"{target}: {candidate.model.method} seed {candidate.seed} judged on D_fail")
    return Judgement(
        results=tuple(results),
        fail=fail,
        predicted_MN=predicted_MN,
        clean_rows_N=clean_rows,
        clean_before_N=clean.classes[0],
        clean_MN=clean.classes[1:],
        clean_labels_N=measures.clean_labels_N,
        judging=judging_of(config, source, images=len(rows), clean_images=len(clean_rows)),
        seen=(
            clean_seen,
            _seen(target, source, rows, corrupted),
            *(other.seen for other in shown.values()),
        ),
        class_names=test.classes,
    )


def _seen(name: str, source: Environment, rows: Ints, shown: Mapping[int, Predictions]) -> JudgedImages:
    """The images of an environment that judged, in all severities."""
    severities_N = np.repeat(list(shown), len(rows))
    files: tuple[str, ...] = ()
    kinds = [f"severity {severity}" for severity in severities_N]
    if isinstance(source, UserImages):
        files = tuple(source.names[row] for row in rows)
        kinds = [f"group {group}" for group in source.groups_N[rows]]
    return JudgedImages(
        name=name,
        image_ids_N=np.tile(source.image_ids_N[rows], len(shown)),
        severities_N=severities_N,
        kinds_N=np.array(kinds),
        labels_N=np.tile(source.labels_N[rows], len(shown)),
        classes=np.concatenate([p.classes for p in shown.values()], axis=1),
        confidence=np.concatenate([p.confidence for p in shown.values()], axis=1),
        files=files,
    )


def _collected_ids(run: Run, target: str) -> Ints:
    manifest = require_manifest(run.target(target), TARGET.remedy)
    return open_side(run.target(target), "collect", manifest).image_ids_N


def _judging_rows(source: Environment, clean_rows: Ints) -> Ints:
    """The rows set aside to judge; without any, those of the clean images that judge."""
    judging = np.flatnonzero(source.parts_N == JUDGE)
    return judging if len(judging) else clean_rows


def _result(
    index: int,
    repair_rate: float,
    candidate: Candidate,
    target: str,
    deployed: DeployedModel,
    measures: _Measures,
    fail: Failures,
    config: Config,
) -> RepairResult:
    """One row of the table: candidate `index`, whose repair rate is its accuracy on D_fail."""
    paper, episodes = _paper_accuracies(deployed, candidate, fail, config)
    row, corrupted, labels_N = index + 1, measures.corrupted, measures.labels_N
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
        clean=_accuracy(clean_N, measures.clean_labels_N),
        clean_before=_accuracy(clean_before_N, measures.clean_labels_N),
        other_corruptions={name: float(values[row]) for name, values in measures.others.items()},
        repair_rate=repair_rate,
        break_rate=_broken([(clean_before_N, clean_N)], measures.clean_labels_N),
        break_rate_corrupted=_broken([(p.classes[0], p.classes[row]) for p in corrupted.values()], labels_N),
        calibration_error=_calibration(
            [(p.confidence[row], p.classes[row]) for p in corrupted.values()], labels_N
        ),
        **asdict(candidate.cost),
        memory_bytes=candidate.memory_bytes,
        images_seen=candidate.model.images_seen,
        gradient_steps=candidate.model.gradient_steps,
        notes=candidate.model.notes,
        selection=candidate.selection,
    )


@dataclass(frozen=True, kw_only=True)
class _Other:
    """The images of another environment that judged, and their digests."""

    seen: JudgedImages
    digests_N: Digests


def _other(
    predict: Callable[[Callable[[Ints], Pixels], Ints], Predictions],
    here: Surroundings,
    name: str,
    clean_rows: Ints,
    config: Config,
) -> _Other:
    """Judge in another environment, over all severities of the same random images for all DNNs."""
    source = here.environment("test", name)
    judging = _judging_rows(source, clean_rows)
    size = min(config.evaluate.others_images, len(judging))
    rows = np.sort(judging[keyed_generator("others", config.seed).permutation(len(judging))[:size]])
    shown = {s: predict(partial(source.images, severity=s), rows) for s in source.severities}
    return _Other(
        seen=_seen(name, source, rows, shown),
        digests_N=np.concatenate([p.digests_N for p in shown.values()]),
    )


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


def _calibration(pairs: Sequence[tuple[NDArray[np.float32], Ints]], labels_N: Ints) -> float:
    """Expected calibration error of confidences and predicted classes, pooled over the pairs."""
    confidence_N = np.concatenate([confidence for confidence, _ in pairs])
    right_N = np.concatenate([classes == labels_N for _, classes in pairs])
    return calibration_error(calibration_bins(confidence_N, right_N))

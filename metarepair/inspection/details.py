"""What only one kind of stage has: severities and classes, confidence, episodes, methods.

Reads what is whole: a file that differs from its checksum is not opened, the manifest's figure stands for it.
D_fail's rows are never looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from metarepair.inspection.facts import (
    CheckpointFacts,
    DeployedFacts,
    Details,
    EnvironmentFacts,
    FeatureFacts,
    MethodFacts,
    RepairFacts,
    ScoreFacts,
    SeverityFacts,
    State,
    TrainingFacts,
)
from metarepair.inspection.places import StagePlace
from metarepair.runs.checkpoint import STATE, read_state
from tasks.datasets import DATASETS
from tasks.errors import DataError, UserError
from tasks.experiences.failure_file import read_failures
from tasks.experiences.pixels import RecomputedPixels
from tasks.records import Failures
from tasks.storage.manifest import Manifest
from tasks.storage.paths import Place

States = Mapping[str, State]
Settings = Mapping[str, Any]


def details_of(
    place: StagePlace,
    manifest: Manifest | None,
    states: States,
    config: Settings,
    parts: Sequence[Mapping[str, Any]],
) -> Details | None:
    """The details of a stage; `parts` are the counts of the whole shards of an unfinished environment."""
    facts = manifest.facts if manifest is not None else {}
    match place.kind:
        case "environment" if manifest is None:
            return _unfinished_environment(parts, config)
        case "environment":
            collect = load_collect(place.folder) if states.get("collect.arrow") == "ok" else None
            return _environment(facts, config, collect)
        case "features":
            return _features(facts, config)
        case "score":
            return _score(place, config, states)
        case "meta":
            return _training(place, facts, states, config)
        case "repaired":
            return _repair(place, states)
        case "compared":
            return _compared(place, states)
        case "deployed":
            epochs = _json(place.folder / "epochs.json", states.get("epochs.json"))
            return DeployedFacts(
                clean_test_accuracy=real(facts.get("clean_test_accuracy")),
                epochs=len(epochs) if isinstance(epochs, list) else None,
            )
        case _:
            return None


def load_collect(folder: Place) -> Failures | None:
    """D_collect of an environment, its pixels mapped or not made yet; None when it cannot be read."""
    try:
        return read_failures(folder / "collect.arrow")
    except DataError:
        return None


def _environment(facts: Settings, config: Settings, collect: Failures | None) -> EnvironmentFacts:
    examined, correct = by_severity([facts], "examined"), by_severity([facts], "correct")
    collected = None if collect is None else count_severities(collect)
    names, named = class_names(config, facts)
    return EnvironmentFacts(
        pixels=None if collect is None else pixels_of(collect),
        parts=None,
        severities=_severities(examined, correct, collected),
        collected_per_class=per_class(collect, facts.get("collected_per_class"), names),
        classes_named=named,
    )


def _unfinished_environment(parts: Sequence[Settings], config: Settings) -> EnvironmentFacts:
    return EnvironmentFacts(
        pixels=None,
        parts=len(parts),
        severities=_severities(by_severity(parts, "examined"), by_severity(parts, "correct"), None),
        collected_per_class={},
        classes_named=class_names(config, {})[1],
    )


def pixels_of(collect: Failures) -> str:
    """Whether a store keeps its pixels or makes them again."""
    return "recomputed" if isinstance(collect.images_NHWC_u8, RecomputedPixels) else "stored"


def by_severity(facts: Iterable[Settings], key: str) -> dict[str, int]:
    """Sums of `{"1": 400}` as manifests and parts keep it; what is no count is left out."""
    total: dict[str, int] = {}
    for one in facts:
        counts = one.get(key)
        for severity, count in counts.items() if isinstance(counts, dict) else ():
            if severity.isdecimal() and whole(count) is not None:
                total[severity] = total.get(severity, 0) + count
    return total


def count_severities(collect: Failures) -> dict[str, int]:
    """Rows of each severity."""
    levels, counts = np.unique(collect.severities_N, return_counts=True)
    return {str(s): int(n) for s, n in zip(levels, counts, strict=True)}


def _severities(
    examined: Mapping[str, int], correct: Mapping[str, int], collected: Mapping[str, int] | None
) -> dict[str, SeverityFacts]:
    found = {}
    for severity in sorted(examined.keys() | correct.keys() | (collected or {}).keys(), key=int):
        seen, right = examined.get(severity), correct.get(severity)
        found[severity] = SeverityFacts(
            examined=seen,
            correct=right,
            accuracy=right / seen if seen and right is not None else None,
            failures=seen - right if seen is not None and right is not None else None,
            collected=None if collected is None else collected.get(severity, 0),
        )
    return found


def class_names(config: Settings, facts: Settings) -> tuple[tuple[str, ...], bool]:
    """Names of the data set's classes and True: as recorded, or as known here; none and False where neither is."""
    recorded = facts.get("class_names")
    if isinstance(recorded, list) and recorded:
        return tuple(map(str, recorded)), True
    data = config.get("data")
    name = data.get("name") if isinstance(data, dict) else None
    return (DATASETS[name].classes, True) if isinstance(name, str) and name in DATASETS else ((), False)


def per_class(collect: Failures | None, recorded: Any, names: Sequence[str]) -> dict[str, int]:
    """Counted where D_collect is whole, else as recorded; every class of the data set, also those without any."""
    counts = [n for n in recorded if whole(n) is not None] if isinstance(recorded, list) else []
    if collect is not None:
        classes, found = np.unique(collect.labels_N, return_counts=True)
        counts = [0] * max(len(counts), len(names), int(classes.max(initial=-1)) + 1)
        for label, count in zip(classes.tolist(), found.tolist(), strict=True):
            counts[label] = count
    return {names[i] if i < len(names) else str(i): n for i, n in enumerate(counts)}


def _features(facts: Settings, config: Settings) -> FeatureFacts:
    extractor = facts.get("extractor", config.get("extractor"))
    return FeatureFacts(
        extractor=extractor if isinstance(extractor, str) else None, dim=whole(facts.get("dim"))
    )


def _score(place: StagePlace, config: Settings, states: States) -> ScoreFacts:
    from metarepair.features.confidence_tables import read_confidence
    from metarepair.runs.layout import Run

    probabilities: dict[str, dict[str, float]] = {}
    effective: dict[str, float] = {}
    targets = config.get("targets")
    readable = states.get("confidence.parquet") == "ok" and place.folder.name == "score"
    for target in targets if isinstance(targets, list) and readable else ():
        try:
            found = read_confidence(Run(place.folder.parent), target)
        except (UserError, KeyError):  # KeyError: written by another version, with other columns
            continue
        probabilities[target] = {n: float(p) for n, p in zip(found.names, found.probabilities_K, strict=True)}
        effective[target] = found.effective_number
    return ScoreFacts(confidence=probabilities, effective_number=effective)


def _training(place: StagePlace, facts: Settings, states: States, config: Settings) -> TrainingFacts:
    checkpoints = _checkpoints(place)
    train = config.get("train")
    reached = [c.episode for c in checkpoints if c.whole and c.episode is not None]
    return TrainingFacts(
        episodes=whole(facts.get("episodes", max(reached, default=None))),
        episodes_wanted=whole(train.get("episodes")) if isinstance(train, dict) else None,
        skipped_episodes=whole(facts.get("skipped_episodes")),
        seconds=real(facts.get("seconds")),
        validation_accuracy=_last_validation(
            _json(place.folder / "metrics.json", states.get("metrics.json"))
        ),
        checkpoints=checkpoints,
    )


def _checkpoints(place: StagePlace) -> tuple[CheckpointFacts, ...]:
    """All that were begun, here or on Ray: a state is written last, and holds the digests of the tensors."""
    files = place.matching(f"*/{STATE}", "*/optimizer.safetensors")
    found = []
    for path in sorted({name.rpartition("/")[0] for name in files}):
        try:
            state = read_state(place.folder / path)
        except (TypeError, AttributeError, RecursionError):  # JSON of another shape
            state = None
        episode = whole(state.get("episode")) if state is not None else None
        found.append(CheckpointFacts(path=path, episode=episode, whole=state is not None))
    return tuple(found)


def _last_validation(metrics: Any) -> float | None:
    rows = [row for row in metrics if isinstance(row, dict)] if isinstance(metrics, list) else []
    found = [real(row.get("validation_accuracy")) for row in rows]
    return next((value for value in reversed(found) if value is not None), None)


def _repair(place: StagePlace, states: States) -> RepairFacts:
    result = _json(place.folder / "result.json", states.get("result.json"))
    rows = result.get("methods") if isinstance(result, dict) else None
    methods = tuple(
        _method(row, place.name) for row in (rows if isinstance(rows, list) else []) if isinstance(row, dict)
    )
    return RepairFacts(methods=methods, weights=_weights(states))


def _compared(place: StagePlace, states: States) -> RepairFacts:
    """One row, also where it is not judged, or its judgement is not as its seal says: its accuracies are not known."""
    target, method, seed = str(place.name).split("/")
    found = _json(place.folder / "judged.json", states.get("judged.json"))
    trusted = isinstance(found, dict) and states["judged.json"] == "ok"
    row = (found if trusted else {}) | {"method": method, "seed": int(seed) if seed.isdecimal() else None}
    return RepairFacts(methods=(_method(row, target),), weights=_weights(states))


def _method(row: Settings, target: str | None) -> MethodFacts:
    return MethodFacts(
        method=str(row.get("method")),
        target=target,
        seed=whole(row.get("seed")),
        d_fail=real(row.get("d_fail")),
        corrupted=real(row.get("corrupted")),
        clean=real(row.get("clean")),
    )


def _weights(states: States) -> tuple[str, ...]:
    return tuple(n for n, state in states.items() if n.endswith(".safetensors") and state != "missing")


def _json(path: Place, state: State | None) -> Any:
    """A small file that is as promised, or that nothing was promised of; None otherwise."""
    if state not in ("ok", "unchecked"):
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def whole(value: Any) -> int | None:
    """The value when it is a count."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def real(value: Any) -> float | None:
    """The value when it is a finite number."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if ok else None

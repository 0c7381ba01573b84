"""Read the facts specific to one kind of stage: severities, classes, confidence, episodes, methods.

A file that differs from its checksum is not opened; the manifest's figure is used instead. The rows of D_fail are
never read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from metarepair.inspection.facts import (
    CheckpointFacts,
    DeployedFacts,
    Details,
    EnvironmentFacts,
    FeatureFacts,
    FileState,
    KitFacts,
    MethodFacts,
    RepairFacts,
    ScoreFacts,
    SeverityFacts,
    TrainingFacts,
)
from metarepair.inspection.stored import (
    StoredStage,
    as_object,
    checkpoint_state,
    episodes_of,
    json_or_none,
    newest,
    real,
    rows_of,
    section,
    whole,
)
from metarepair.runs.checkpoint import STATE
from tasks.datasets import DATASETS
from tasks.errors import DataError, UserError
from tasks.experiences.failure_file import read_failures
from tasks.experiences.pixels import RecomputedPixels
from tasks.records import Failures
from tasks.storage.paths import Place

States = Mapping[str, FileState]
Settings = Mapping[str, Any]


def details_of(stage: StoredStage, states: States, counts: Sequence[Settings]) -> Details | None:
    """Return a stage's details. `counts`: the counts of an unfinished environment's intact shards."""
    match stage.kind:
        case "environment":
            return _environment(stage, states, counts)
        case "features":
            extractor = stage.facts.get("extractor", stage.config.get("extractor"))
            name = extractor if isinstance(extractor, str) else None
            return FeatureFacts(extractor=name, dim=whole(stage.facts.get("dim")))
        case "score":
            return _score(stage, states)
        case "meta":
            return _training(stage, states)
        case "repaired":
            rows = rows_of(as_object(_read(stage, "result.json", states)).get("methods"))
            return _repair([_method(row, stage.name) for row in rows], states)
        case "compared":
            return _repair([_compared(stage, states)], states)
        case "deployed":
            epochs = _read(stage, "epochs.json", states)
            return DeployedFacts(
                clean_test_accuracy=real(stage.facts.get("clean_test_accuracy")),
                epochs=len(epochs) if isinstance(epochs, list) else None,
            )
        case "kit":
            return _kit(stage, states)
        case _:
            return None


def _kit(stage: StoredStage, states: States) -> KitFacts:
    found = as_object(_read(stage, "kit.json", states))
    clean = found.get("clean")
    return KitFacts(
        deployed=str(found["deployed"]) if "deployed" in found else None,
        experiences=tuple(str(row.get("name")) for row in rows_of(found.get("experiences"))),
        clean_images=sum(n for n in clean if whole(n) is not None) if isinstance(clean, list) else 0,
        failures=found.get("failures") is True,
        learned=None if stage.manifest is None else stage.manifest.rows.get("learned"),
    )


def load_collect(folder: Place) -> Failures | None:
    """Load an environment's D_collect, with pixels memory-mapped or not yet computed; None if it cannot be read."""
    try:
        return read_failures(folder / "collect.arrow")
    except DataError:
        return None


def _environment(stage: StoredStage, states: States, counts: Sequence[Settings]) -> EnvironmentFacts:
    """Return failure counts from the manifest, or from the shards of an unfinished environment (no D_collect yet)."""
    done = stage.manifest is not None
    collect = load_collect(stage.folder) if done and states.get("collect.arrow") == "ok" else None
    counted = [stage.facts] if done else counts
    names = class_names(stage.config, stage.facts)
    return EnvironmentFacts(
        pixels=None if collect is None else pixels_of(collect),
        parts=None if done else len(counts),
        severities=_severities(
            by_severity(counted, "examined"),
            by_severity(counted, "correct"),
            None if collect is None else count_severities(collect),
        ),
        collected_per_class=per_class(collect, stage.facts.get("collected_per_class"), names) if done else {},
        classes_named=bool(names),
    )


def pixels_of(collect: Failures) -> str:
    """Return whether the pixels are stored or recomputed."""
    return "recomputed" if isinstance(collect.images_NHWC, RecomputedPixels) else "stored"


def by_severity(facts: Iterable[Settings], key: str) -> dict[str, int]:
    """Sum counts by severity, as `{"1": 400}`, over manifests or shards. Values that are not counts are ignored."""
    total: dict[str, int] = {}
    for one in facts:
        for severity, count in section(one, key).items():
            if severity.isdecimal() and whole(count) is not None:
                total[severity] = total.get(severity, 0) + count
    return total


def count_severities(collect: Failures) -> dict[str, int]:
    """Return the number of rows at each severity."""
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


def class_names(config: Settings, facts: Settings) -> tuple[str, ...]:
    """Return the data set's class names, as recorded or by the data set's name; empty if unknown."""
    recorded = facts.get("class_names")
    if isinstance(recorded, list) and recorded:
        return tuple(map(str, recorded))
    name = section(config, "data").get("name")
    return DATASETS[name].classes if isinstance(name, str) and name in DATASETS else ()


def per_class(collect: Failures | None, recorded: Any, names: Sequence[str]) -> dict[str, int]:
    """Return the number of rows of each class: counted if D_collect is intact, else as recorded."""
    counts = [n for n in recorded if whole(n) is not None] if isinstance(recorded, list) else []
    if collect is not None:
        classes, found = np.unique(collect.labels_N, return_counts=True)
        counts = [0] * max(len(counts), len(names), int(classes.max(initial=-1)) + 1)
        for label, count in zip(classes.tolist(), found.tolist(), strict=True):
            counts[label] = count
    return {names[i] if i < len(names) else str(i): n for i, n in enumerate(counts)}


def _score(stage: StoredStage, states: States) -> ScoreFacts:
    from metarepair.features.confidence_tables import read_confidence
    from metarepair.runs.layout import Run

    probabilities: dict[str, dict[str, float]] = {}
    effective: dict[str, float] = {}
    targets = stage.config.get("targets")
    readable = states.get("confidence.parquet") == "ok" and stage.folder.name == "score"
    for target in targets if isinstance(targets, list) and readable else ():
        try:
            found = read_confidence(Run(stage.folder.parent), target)
        except (UserError, KeyError):  # KeyError: another version wrote it with other columns
            continue
        probabilities[target] = {n: float(p) for n, p in zip(found.names, found.probabilities_K, strict=True)}
        effective[target] = found.effective_number
    return ScoreFacts(confidence=probabilities, effective_number=effective)


def _training(stage: StoredStage, states: States) -> TrainingFacts:
    checkpoints = _checkpoints(stage)
    reached = [c.episode for c in checkpoints if c.whole and c.episode is not None]
    return TrainingFacts(
        episodes=whole(stage.facts.get("episodes", max(reached, default=None))),
        episodes_wanted=episodes_of(stage.config),
        skipped_episodes=whole(stage.facts.get("skipped_episodes")),
        seconds=real(stage.facts.get("seconds")),
        validation_accuracy=newest(rows_of(_read(stage, "metrics.json", states)), "validation_accuracy"),
        checkpoints=checkpoints,
    )


def _checkpoints(stage: StoredStage) -> tuple[CheckpointFacts, ...]:
    """Return every checkpoint that was started. Its state is written last and holds its tensors' digests."""
    files = stage.matching(f"*/{STATE}", "*/optimizer.safetensors")
    found = []
    for path in sorted({name.rpartition("/")[0] for name in files}):
        state = checkpoint_state(stage.folder / path)
        episode = whole(state.get("episode")) if state is not None else None
        found.append(CheckpointFacts(path=path, episode=episode, whole=state is not None))
    return tuple(found)


def _compared(stage: StoredStage, states: States) -> MethodFacts:
    """Return one repair of a comparison. Its accuracies are None if its judgement is missing or damaged."""
    target, method, seed = str(stage.name).split("/")
    found = as_object(_read(stage, "judged.json", states)) if states.get("judged.json") == "ok" else {}
    return _method(found | {"method": method, "seed": int(seed) if seed.isdecimal() else None}, target)


def _method(row: Settings, target: str | None) -> MethodFacts:
    return MethodFacts(
        method=str(row.get("method")),
        target=target,
        seed=whole(row.get("seed")),
        d_fail=real(row.get("d_fail")),
        corrupted=real(row.get("corrupted")),
        clean=real(row.get("clean")),
    )


def _repair(methods: Iterable[MethodFacts], states: States) -> RepairFacts:
    weights = (n for n, state in states.items() if n.endswith(".safetensors") and state != "missing")
    return RepairFacts(methods=tuple(methods), weights=tuple(weights))


def _read(stage: StoredStage, name: str, states: States) -> Any:
    """Return the content of a small JSON file; None if the file differs from its checksum."""
    return json_or_none(stage.folder / name) if states.get(name) in ("ok", "unchecked") else None

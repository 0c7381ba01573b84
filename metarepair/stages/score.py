"""The stage `score`: distances of all pairs, and each target's confidence in its experiences.

Source: paper Eq. 7 and 8, Fig. 4.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from metarepair.config.run import Config
from metarepair.features.confidence_tables import (
    TARGET_SUFFIX,
    confidence_of,
    describe_confidence,
    scores_of,
    write_scores,
)
from metarepair.features.extractors import distance_name
from metarepair.kit.kit import Kit
from metarepair.reports.figures import heat_map, save
from metarepair.runs.layout import Run
from metarepair.runs.logs import RESULTS
from metarepair.runs.run_stage import StageOutput, run_stage
from metarepair.stages.distances import all_distances, with_intervals
from metarepair.stages.executor import Executor
from metarepair.stages.features import MOMENTS, extract_all, feature_folder, feature_parts, feature_stages
from metarepair.stages.mining import MinedManifests, environments
from tasks.environments import category_of
from tasks.errors import DataError, StageError
from tasks.records import FidScore
from tasks.storage.manifest import (
    as_recorded,
    check_done,
    discard,
    read_manifest,
    verify_checksums,
)
from tasks.storage.paths import Place
from tasks.storage.settings import Settings, changes
from tasks.storage.stages import SCORE

logger = logging.getLogger(__name__)


def score_stage(
    run: Run, config: Config, mined: MinedManifests, executor: Executor, *, kit: Kit | None = None
) -> None:
    """Compute features of all environments, distances of all pairs, confidence of each target's experiences.

    With a kit, the experiences and their moments are those of the kit.
    """
    for environment in environments(run, config):
        verify_checksums(environment.folder, mined[environment.role, environment.name])
    features = extract_all(run, config, mined, executor)
    settings = as_recorded(run.score, score_settings(config))
    inputs = {f"features {role} {name}": manifest.digest for (role, name), manifest in features.items()}
    inputs |= {} if kit is None else {"kit": kit.manifest.digest}
    _leave_other_targets(run.score, settings, inputs)

    def make() -> StageOutput:
        scores, files = _score(run, config, features, executor, kit)
        for target in config.targets:
            confidence = confidence_of(scores, target, config.experiences)
            logger.log(RESULTS, describe_confidence(target, confidence, scores))
        logger.log(RESULTS, f"{distance_name(config.features.extractor)}: {run.score / 'heatmap.png'}")
        return StageOutput(files=files)

    run_stage(SCORE, run.score, make, config=settings, inputs=inputs)


def _leave_other_targets(folder: Place, settings: dict[str, Any], inputs: Mapping[str, str]) -> None:
    """Discard a score that differs only in its targets: what has not changed comes out the same when made again."""
    try:
        held = read_manifest(folder)
    except DataError:  # check_whole warns about it and makes it again
        return
    if held is None or held.config.get("targets") == settings["targets"]:
        return
    common = held.inputs.keys() & inputs.keys()
    beside = settings | {"targets": held.config.get("targets")}
    if not changes(held.config, beside) and all(held.inputs[key] == inputs[key] for key in common):
        logger.info(f"score: made again, because its targets were {', '.join(held.config['targets'])}")
        discard(folder)
        return
    # This raises StageError and names only what differs besides the targets: those alone would not be refused.
    check_done(
        folder,
        stage=SCORE.title(),
        config=beside,
        inputs={key: inputs.get(key, digest) for key, digest in held.inputs.items()},
    )


def score_settings(config: Config) -> Settings:
    """The settings that distances and confidence depend on, besides those of the features."""
    settings = config.settings(include={"targets", "experiences"})
    settings["mined"] = list(config.mining.experiences)
    settings["features"] = config.features.settings(include={"bootstrap", "extrapolate"})
    if config.features.bootstrap or config.features.extrapolate:
        settings["seed"] = config.seed
    return settings


def _score(
    run: Run, config: Config, features: MinedManifests, executor: Executor, kit: Kit | None
) -> tuple[list[FidScore], list[str]]:
    """Distances with their intervals, and the names of the files that now hold them."""
    every, held = environments(run, config), () if kit is None else kit.file.experiences
    matrix = all_distances(
        [*(kit.moments(one.name) for one in held if kit), *(feature_folder(run, e) / MOMENTS for e in every)],
        executor,
        known=None if kit is None else kit.distances(),
    )
    plain = scores_of(
        matrix,
        [one.name for one in held] or config.mining.experiences,
        config.targets,
        extractor=config.features.extractor,
        rows=[*(one.failures for one in held), *(features[e.role, e.name].rows["features"] for e in every)],
    )
    # Before the intervals, which take long: this refuses a β that leaves a target no experience.
    confidences = {t: confidence_of(plain, t, config.experiences) for t in config.targets}
    scores = with_intervals(
        plain,
        lambda score: feature_parts(run, score.experience, score.target),
        resamples=config.features.bootstrap,
        extrapolate=config.features.extrapolate,
        seed=config.seed,
        executor=executor,
    )
    names = [one.name for one in held]
    names += [e.name + (TARGET_SUFFIX if e.role == "target" else "") for e in every]
    files = write_scores(run.score, scores, matrix, names, confidences)
    pairs = {(a, b): float(matrix[i, j]) for i, a in enumerate(names) for j, b in enumerate(names)}
    title, label = f"Distances of {len(names)} environments", distance_name(config.features.extractor)
    save(run.score / "heatmap.png", heat_map(pairs, names, _category, title, label))
    return scores, [*files, "heatmap.png"]


def stale_features(run: Run, config: Config, mined: MinedManifests) -> list[Place]:
    """The folders of features that a restart deletes: unfinished ones, and those of other settings or failures.

    The rest is kept, as features do not depend on α, β or the experiences.
    """
    stale = []
    for stage in feature_stages(run, config, mined).values():
        try:
            done = check_done(stage.folder, stage=stage.stage, config=stage.settings, inputs=stage.inputs)
        except (StageError, DataError):
            done = None
        if done is None:
            stale.append(stage.folder)
    return stale


def _category(name: str) -> str:
    return category_of(name.removesuffix(TARGET_SUFFIX))

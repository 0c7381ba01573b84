"""Prepare what the trials of a search may read of a mined run: everything but the D_fail that judges them.

<run>/search/inputs/
    distances/          fid.parquet: from every experience to every environment that judges
    collect/<name>/     collect.arrow: a copy of the D_collect of an environment that judges, with a manifest
    images/<name>/      a copy of a user's own environment, without the images that judge
The environments that judge are the targets, or experiences that are left out in turn (search.objective).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings
from metarepair.features.confidence_tables import confidence_of
from metarepair.meta_training.inputs import TrainingInputs
from metarepair.runs.layout import Run
from metarepair.search.check import check_distances
from metarepair.search.space import judged_environments, search_of
from metarepair.stages.distances import all_distances
from metarepair.stages.executor import Executor
from metarepair.stages.features import MOMENTS, feature_folder
from metarepair.stages.mining import EnvironmentStage, MinedManifests, Role, environments
from tasks.corruptions import CORRUPTIONS
from tasks.datasets import Split
from tasks.environments import UserImages, copy_what_is_learned
from tasks.records import FID_SCHEMA, FidScore
from tasks.storage.manifest import check_whole, write_manifest
from tasks.storage.paths import Place, copy_file, local, write_table


@dataclass(frozen=True, kw_only=True)
class Judge:
    """An environment that judges trials: a folder with only its D_collect, and the split it was mined from."""

    name: str
    collect: Place
    split: Split
    scores: tuple[FidScore, ...]


@dataclass(frozen=True, kw_only=True)
class TrialSetup:
    """Everything that a trial is given besides its drawn settings.

    trials: the folder of all trials' folders. images: the folder of the user's own environments. joint: that of joint
    training.
    """

    config: Config
    trials: Place
    experiences: Mapping[str, Place]
    judges: tuple[Judge, ...]
    images: Place
    joint: Place


def searched_config(config: Config) -> Config:
    """The configuration that a search mines with. With pseudo-targets it has no targets, as the search needs none.

    The user's own environments among these stay, as others: they judge later, and are kept apart from experiences.
    """
    if search_of(config).objective == "validation":
        return config
    own = [name for name in config.targets if config.has_own_images(name)]
    others = config.evaluate.others
    if own:
        others = tuple(dict.fromkeys((*(CORRUPTIONS if others is None else others), *own)))
    evaluate = config.evaluate.model_copy(update={"others": others})
    return config.model_copy(update={"targets": (), "evaluate": evaluate})


def prepare_inputs(
    run: Run,
    config: Config,
    here: Surroundings,
    mined: MinedManifests,
    features: MinedManifests,
    executor: Executor,
) -> TrialSetup:
    """Copy and measure what trials read, if that is not done yet.

    mined, features: of the environments of `searched_config`. Raises ConfigError if a β of the space leaves a judge
    nothing to learn from, which can be checked only once distances are known.
    """
    role: Role = "target" if search_of(config).objective == "validation" else "experience"
    every = environments(run, searched_config(config))
    of = {(e.role, e.name): e for e in every}
    judging = [of[role, name] for name in judged_environments(config)]
    scores = _distances(run, config, every, judging, features, executor)
    judges = tuple(
        Judge(
            name=e.name,
            collect=_copied(run, e, mined),
            split=e.split,
            scores=tuple(s for s in scores if s.target == e.name),
        )
        for e in judging
    )
    check_distances(config, {j.name: {s.experience: s.distance for s in j.scores} for j in judges})
    return TrialSetup(
        config=config,
        trials=run.search / "trials",
        experiences={name: run.experience(name) for name in config.mining.experiences},
        judges=judges,
        images=_copied_images(run, every, here),
        joint=run.joint,
    )


def _copied_images(run: Run, every: Sequence[EnvironmentStage], here: Surroundings) -> Place:
    """The folder with a copy of each of the user's own environments, without the images that judge."""
    folder = run.search / "inputs" / "images"
    for name in dict.fromkeys(e.name for e in every if here.config.has_own_images(e.name)):
        own, inputs = folder / name, here.inputs_of(name)
        stage, settings = f"search input images {name}", {"seed": here.config.seed}
        if check_whole(own, stage=stage, config=settings, inputs=inputs) is None:
            source = here.environment("test", name)
            assert isinstance(source, UserImages)
            files, rows, facts = copy_what_is_learned(run.environment(name), source, own)
            write_manifest(
                own, stage=stage, config=settings, inputs=inputs, files=files, rows=rows, facts=facts
            )
    return folder


def _copied(run: Run, environment: EnvironmentStage, mined: MinedManifests) -> Place:
    """A folder with a copy of the environment's D_collect, without its D_fail."""
    source = mined[environment.role, environment.name]
    folder = run.search / "inputs" / "collect" / environment.name
    stage, inputs = f"search input {environment.name}", {"mined": source.digest}
    if check_whole(folder, stage=stage, config={}, inputs=inputs) is None:
        copy_file(environment.folder / "collect.arrow", folder / "collect.arrow")
        rows = {"collect": source.rows["collect"]}
        write_manifest(folder, stage=stage, config={}, inputs=inputs, files=["collect.arrow"], rows=rows)
    return folder


def _distances(
    run: Run,
    config: Config,
    every: list[EnvironmentStage],
    judging: list[EnvironmentStage],
    features: MinedManifests,
    executor: Executor,
) -> list[FidScore]:
    """The distances of every experience to every other environment that judges; read if already measured."""
    folder = run.search / "inputs" / "distances"
    stage = "search distances"
    settings = {"judged": [[e.role, e.name] for e in judging]}
    inputs = {f"features {role} {name}": manifest.digest for (role, name), manifest in features.items()}
    if check_whole(folder, stage=stage, config=settings, inputs=inputs) is None:
        rows = [asdict(s) for s in _measured(run, config, every, judging, features, executor)]
        write_table(folder / "fid.parquet", pa.Table.from_pylist(rows, schema=FID_SCHEMA))
        write_manifest(folder, stage=stage, config=settings, inputs=inputs, files=["fid.parquet"])
    return [FidScore(**row) for row in pq.read_table(local(folder / "fid.parquet")).to_pylist()]


def _measured(
    run: Run,
    config: Config,
    every: list[EnvironmentStage],
    judging: list[EnvironmentStage],
    features: MinedManifests,
    executor: Executor,
) -> list[FidScore]:
    matrix = all_distances([feature_folder(run, e) / MOMENTS for e in every], executor)
    rows = {e: features[e.role, e.name].rows["features"] for e in every}
    return [
        FidScore(
            experience=experience.name,
            target=judge.name,
            distance=float(matrix[every.index(experience), every.index(judge)]),
            extractor=config.features.extractor,
            num_experience=rows[experience],
            num_target=rows[judge],
        )
        for judge in judging
        for experience in every
        if experience.role == "experience" and experience.name != judge.name
    ]


def trial_inputs(setup: TrialSetup, settings: Config) -> tuple[TrainingInputs, ...]:
    """The inputs of a trial's trainings with these settings, one for each environment that judges it."""
    inputs = []
    for judge in setup.judges:
        confidence = confidence_of(judge.scores, judge.name, settings.experiences)
        inputs.append(
            TrainingInputs(
                target=judge.name,
                experiences={name: setup.experiences[name] for name in confidence.names},
                collect=judge.collect,
                split=judge.split,
                confidence=confidence,
                images=setup.images,
                start=setup.joint,
            )
        )
    return tuple(inputs)

"""Extract the features of every environment's D_collect, and their moments, shard by shard.

<run>/features/<role>-<corruption>/
    part-00000.parquet …   one row per collected example, in the store's order; each file is complete or absent
    moments.npy            mean and covariance factor, from which all distances of this environment are computed
    manifest.json          written last
A killed run resumes with the missing shards. A damaged file is named in a log line, and only that file is made again.
Source: paper Eq. 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings, load_surroundings
from metarepair.features.extractors import FeatureExtractor, build_extractor, weights_digest
from metarepair.features.files import read_features, write_features, write_moments
from metarepair.runs.layout import Run
from metarepair.runs.progress import Progress
from metarepair.stages.executor import Executor
from metarepair.stages.mining import EnvironmentStage, MinedManifests, Role, environments
from tasks.distances.frechet import Moments, merge_in_order, moments, scatter
from tasks.errors import DataError
from tasks.experiences.store import open_side
from tasks.records import Ints
from tasks.storage.manifest import Manifest, as_recorded, begin, check_whole, content_hash, write_manifest
from tasks.storage.paths import Place, find
from tasks.storage.sealed_parts import missing_parts, seal
from tasks.storage.settings import Settings
from tasks.storage.stages import FEATURES

# N examples, D features

MOMENTS = "moments.npy"


@dataclass(frozen=True, kw_only=True)
class FeatureShard:
    """Rows `start` to `stop` of an environment's D_collect, and where their features go."""

    environment: EnvironmentStage
    mined: Manifest
    start: int
    stop: int
    path: Place
    made_of: str

    @property
    def identity(self) -> dict[str, Any]:
        """The identity that its file is sealed with."""
        name = [self.environment.role, self.environment.name]
        return {"features of": name, "rows": [self.start, self.stop], "made of": self.made_of}


@dataclass(frozen=True, kw_only=True)
class FeatureStage:
    """One environment's features: its folder, what they depend on, and its shards."""

    folder: Place
    stage: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    shards: tuple[FeatureShard, ...]

    @property
    def files(self) -> list[str]:
        return [*(s.path.name for s in self.shards), MOMENTS]


def feature_settings(config: Config) -> Settings:
    """The settings that features depend on, with a digest of the weights file that is used.

    Raises WeightsError if that file is missing. The deployed DNN is not among them, as it is an input of mining.
    """
    settings = config.features.settings(include={"extractor", "shard_images"})
    return settings | {"weights_digest": weights_digest(config.features.extractor, config.features.weights)}


def feature_folder(run: Run, environment: EnvironmentStage) -> Place:
    """The folder of an environment's features."""
    return run.features / f"{environment.role}-{environment.name}"


def feature_parts(run: Run, experience: str, target: str) -> tuple[list[Place], list[Place]]:
    """The feature files of an experience and of a target."""
    folders = (run.features / f"experience-{experience}", run.features / f"target-{target}")
    return find(folders[0], "part-*.parquet"), find(folders[1], "part-*.parquet")


def extract_all(
    run: Run, config: Config, mined: MinedManifests, executor: Executor
) -> dict[tuple[Role, str], Manifest]:
    """Extract features and moments of the D_collect of every environment in `mined`.

    Raises WeightsError, ConfigError, StageError, DataError (a NaN feature names its image).
    """
    stages = feature_stages(run, config, mined)
    done = {}
    for key, stage in stages.items():
        manifest = check_whole(stage.folder, stage=stage.stage, config=stage.settings, inputs=stage.inputs)
        if manifest is not None:
            done[key] = manifest
    missing = {key: stage for key, stage in stages.items() if key not in done}
    for stage in missing.values():
        begin(
            stage.folder,
            config=stage.settings,
            inputs=stage.inputs,
            sealed=True,
            parts=len(stage.shards),
        )
    _extract(config, [s for stage in missing.values() for s in stage.shards], executor)
    sizes = executor.map(_build_moments, list(missing.items()), one_cpu=True)
    for (key, stage), (count, dim) in sizes:
        done[key] = write_manifest(
            stage.folder,
            stage=stage.stage,
            config=stage.settings,
            inputs=stage.inputs,
            files=stage.files,
            rows={"features": count},
            facts={"extractor": config.features.extractor, "dim": dim},
        )
    return {key: done[key] for key in stages}


def feature_stages(run: Run, config: Config, mined: MinedManifests) -> dict[tuple[Role, str], FeatureStage]:
    """The feature stage of every environment in `mined`. Raises WeightsError as `feature_settings` does."""
    settings = feature_settings(config)
    return {
        (e.role, e.name): _stage(run, e, mined[e.role, e.name], settings)
        for e in environments(run, config)
        if (e.role, e.name) in mined
    }


def _stage(
    run: Run, environment: EnvironmentStage, manifest: Manifest, settings: dict[str, Any]
) -> FeatureStage:
    folder, count, size = feature_folder(run, environment), manifest.rows["collect"], settings["shard_images"]
    settings, inputs = as_recorded(folder, settings), {"mined": manifest.digest}
    made_of = content_hash([settings, inputs])
    return FeatureStage(
        folder=folder,
        stage=FEATURES.title(environment.role, environment.name),
        settings=settings,
        inputs=inputs,
        shards=tuple(
            FeatureShard(
                environment=environment,
                mined=manifest,
                start=start,
                stop=min(start + size, count),
                path=folder / f"part-{number:05d}.parquet",
                made_of=made_of,
            )
            for number, start in enumerate(range(0, count, size))
        ),
    )


def _extract(config: Config, shards: Sequence[FeatureShard], executor: Executor) -> None:
    """Extract the features of all shards that are missing or damaged."""
    missing = missing_parts(shards)
    if not missing:
        return
    progress = Progress("features", len(shards), "shards", done=len(shards) - len(missing))
    build = partial(_build_extractor, config)
    for shard, _ in executor.map(build, missing):
        progress.advance(note=shard.environment.name)


def load_extractor(config: Config, here: Surroundings) -> FeatureExtractor:
    """The configured extractor. Raises WeightsError if its weights are missing."""
    return build_extractor(
        config.features.extractor,
        weights=config.features.weights,
        deployed=here.deployed.module,
        mean=here.deployed.mean,
        std=here.deployed.std,
        device=here.deployed.device,
        input_size=here.deployed.input_size,
    )


def _build_extractor(config: Config) -> Callable[[FeatureShard], int]:
    here = load_surroundings(config)
    extractor = load_extractor(config, here)

    def work(shard: FeatureShard) -> int:
        environment = shard.environment
        collect = open_side(
            environment.folder,
            "collect",
            shard.mined,
            here.environment(environment.split, environment.name),
        )
        size = config.features.batch_size
        starts = range(shard.start, shard.stop, size)
        images = collect.images_NHWC
        features = [extractor(images[start : min(start + size, shard.stop)]) for start in starts]
        ids = collect.image_ids_N[shard.start : shard.stop]
        write_features(shard.path, np.concatenate(features), ids)
        seal(shard.path, shard.identity)
        return shard.stop - shard.start

    return work


def _build_moments() -> Callable[[tuple[tuple[Role, str], FeatureStage]], tuple[int, int]]:
    def work(item: tuple[tuple[Role, str], FeatureStage]) -> tuple[int, int]:
        _, stage = item
        joint = moments_of_parts([shard.path for shard in stage.shards])
        write_moments(stage.folder / MOMENTS, joint)
        return joint.count, len(joint.mean_D)

    return work


def moments_of_parts(paths: Sequence[Place]) -> Moments:
    """Moments of all parts' rows: of all rows at once if there are at most as many as features, otherwise merged.

    Parts are merged in their order, so the bits depend neither on the number of actors nor on which finished first.
    """
    waiting = map(read_features, paths)
    kept: list[tuple[NDArray[np.float32], Ints]] = []
    for part in waiting:
        kept.append(part)
        if sum(len(features_ND) for features_ND, _ in kept) > part[0].shape[1]:
            return merge_in_order(scatter(f, names=ids) for f, ids in chain(kept, waiting)).moments()
    if not kept:
        raise DataError("There are no features. Collect failures first (mining.collect).")
    features_ND, ids_N = (np.concatenate(column) for column in zip(*kept, strict=True))
    return moments(features_ND, names=ids_N)

"""Collected examples in, features and Fréchet distances of all pairs of environments out: two actor pools.

Features are computed once per environment (one Parquet file each, whole or not at all), distances once per
unordered pair. Source: paper Eq. 7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distributed.cluster import gpus_per_worker
from distributed.mining import Environment, Role, environments
from distributed.pool import map_items
from metarepair.config import Config
from metarepair.deploy import Surroundings, load_surroundings
from metarepair.features import FeatureExtractor, build_extractor
from metarepair.layout import Run
from metarepair.progress import Progress
from tasks.errors import DataError
from tasks.frechet import Moments, frechet_distance, moments
from tasks.manifest import Manifest, check_done, content_hash, file_hash, write_manifest
from tasks.store import open_side

# N examples, D features


@dataclass(frozen=True)
class FeatureItem:
    """One environment's collected examples, and where their features go."""

    environment: Environment
    manifest: Manifest
    path: Path


def feature_name(role: Role, corruption: str) -> str:
    """File name of an environment's features."""
    return f"{role}-{corruption}.parquet"


def feature_settings(config: Config) -> dict[str, Any]:
    """The settings that features depend on, with a digest of the extractor's weights where they are given."""
    settings = config.features.model_dump(mode="json", exclude={"batch_size"})
    path = Path(config.features.weights).expanduser() if config.features.weights else None
    return settings | {"weights_digest": file_hash(path) if path is not None and path.is_file() else None}


def extract_all(run: Run, config: Config, mined: Mapping[tuple[Role, str], Manifest]) -> Manifest:
    """Features of every environment's D_collect. Raises WeightsError, ConfigError, StageError, DataError."""
    settings = feature_settings(config)
    inputs = {f"{role} {name}": manifest.digest for (role, name), manifest in mined.items()}
    done = check_done(run.features, stage="features", config=settings, inputs=inputs)
    if done is not None:
        return done
    items = []
    for environment in environments(run, config):
        manifest = mined[environment.role, environment.corruption]
        path = run.features / feature_name(environment.role, environment.corruption)
        items.append(FeatureItem(environment, manifest, path))
    missing = [item for item in items if not _is_of(config, item)]
    progress = Progress("features", len(items), "environments", done=len(items) - len(missing))
    build = partial(_build_extractor, config)
    names = {_name_in(item.path) for item in items if item not in missing}
    for item, name in map_items(
        build, missing, workers=config.workers, gpus_per_worker=gpus_per_worker(config)
    ):
        names.add(name)
        progress.advance(note=item.environment.corruption)
    if len(names) != 1:
        raise DataError(f"{run.features} mixes features of {sorted(names)}. Run again with --restart.")
    return write_manifest(
        run.features,
        stage="features",
        config=settings,
        inputs=inputs,
        files=[item.path.name for item in items],
        rows={item.path.name: item.manifest.rows["collect"] for item in items},
        facts={"extractor": names.pop()},
    )


def load_extractor(config: Config, here: Surroundings) -> FeatureExtractor:
    """The configured extractor. Raises WeightsError where its weights are missing."""
    return build_extractor(
        config.features.extractor,
        weights=Path(config.features.weights).expanduser() if config.features.weights else None,
        deployed=here.deployed.module,
        mean=here.deployed.mean,
        std=here.deployed.std,
        device=here.deployed.device,
    )


def _build_extractor(config: Config) -> Callable[[FeatureItem], str]:
    extractor = load_extractor(config, load_surroundings(config))

    def work(item: FeatureItem) -> str:
        failures = open_side(item.environment.folder, "collect", item.manifest)
        size = config.features.batch_size
        parts = [
            extractor(failures.images_NHWC_u8[start : start + size])
            for start in range(0, len(failures), size)
        ]
        write_features(item.path, np.concatenate(parts), extractor.name, _source(config, item))
        return extractor.name

    return work


def write_features(path: Path, features_ND: NDArray[np.float32], extractor: str, source: str) -> None:
    """One row per collected example, in the store's order; the file appears whole or not at all."""
    flat = pa.array(features_ND.astype(np.float32).reshape(-1), pa.float32())
    column = pa.FixedSizeListArray.from_arrays(flat, features_ND.shape[1])
    table = pa.table({"features": column}).replace_schema_metadata({"extractor": extractor, "source": source})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".tmp")
    pq.write_table(table, part)
    part.replace(path)


def read_features(path: Path) -> NDArray[np.float32]:
    """Features [N, D] float32 of one environment. Raises DataError for a damaged file."""
    try:
        column = pq.read_table(path)["features"].combine_chunks()
        dim = column.type.list_size
        features: NDArray[np.float32] = column.values.to_numpy().reshape(-1, dim)
    except (OSError, pa.ArrowInvalid, KeyError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is missing or truncated ({error}). Score again with --restart.") from error
    return features


def _metadata(path: Path) -> dict[str, str]:
    try:
        found = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return {}
    return {k.decode(): v.decode() for k, v in found.items() if k in (b"extractor", b"source")}


def _source(config: Config, item: FeatureItem) -> str:
    """What an environment's features depend on: its store, the extractor and the extractor's weights."""
    return content_hash([item.manifest.digest, feature_settings(config)])


def _is_of(config: Config, item: FeatureItem) -> bool:
    """Whether the features of this very store, by this very extractor, are there already."""
    return _metadata(item.path).get("source") == _source(config, item)


def _name_in(path: Path) -> str:
    return _metadata(path)["extractor"]


def all_distances(paths: Sequence[Path], *, workers: int) -> NDArray[np.float64]:
    """The symmetric matrix of Fréchet distances of all pairs; a work item is a row of its upper triangle."""
    count = len(paths)
    matrix = np.zeros((count, count))
    progress = Progress("distances", count * (count - 1) // 2, "pairs")
    build = partial(_build_distances, tuple(paths))
    for row, distances in map_items(build, list(range(count - 1)), workers=workers):
        matrix[row, row + 1 :] = matrix[row + 1 :, row] = distances
        progress.advance(len(distances))
    return matrix


def _build_distances(paths: tuple[Path, ...]) -> Callable[[int], list[float]]:
    @cache
    def moments_of(index: int) -> Moments:
        return moments(read_features(paths[index]))

    def work(row: int) -> list[float]:
        return [frechet_distance(moments_of(row), moments_of(other)) for other in range(row + 1, len(paths))]

    return work

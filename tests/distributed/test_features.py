"""Features by shard: equal bits for any number of actors, no loss when processes die, and repair of damaged files."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from distributed.on_ray import pool
from distributed.stages.executor import executor_for
from metarepair.cli import main
from metarepair.config.run import Config
from metarepair.features.files import read_features, read_moments, write_features, write_moments
from metarepair.stages import features as stage
from metarepair.stages.features import MOMENTS, moments_of_parts
from metarepair.stages.pipeline import Pipeline
from tasks.distances.frechet import frechet_distance, moments
from tasks.errors import DataError, WorkerError
from tasks.storage.manifest import read_manifest, verify_checksums

Tiny = Callable[..., Config]
SHARDS = {"extractor": "deployed", "shard_images": 4}


def rescored(tiny: Tiny, storage: Path, **changes: Any) -> Path:
    """Score a mined run again and return its folder."""
    for name in ("features", "score"):
        shutil.rmtree(storage / "tiny" / name, ignore_errors=True)
    Pipeline(tiny(storage, features=SHARDS, **changes), executor_for).score()
    return storage / "tiny"


def results(run: Path) -> dict[str, bytes]:
    files = [
        *run.glob("features/*/*.parquet"),
        *run.glob(f"features/*/{MOMENTS}"),
        *run.glob("score/*.parquet"),
    ]
    return {str(p.relative_to(run)): p.read_bytes() for p in files}


@pytest.mark.distributed
@pytest.mark.soak
def test_one_process_and_four_actors_give_the_same_bits(
    cluster: None, tiny: Tiny, storage_of: Callable[[str], Path]
) -> None:
    half = {"cpus_per_worker": 0.5}  # four actors share the cluster's two CPUs
    found = [
        results(rescored(tiny, storage_of(f"w{workers}"), workers=workers, ray=half)) for workers in (0, 4)
    ]
    assert len(found[0]) > 30
    assert found[0] == found[1]


def test_the_size_of_a_shard_changes_distances_only_by_rounding(
    tiny: Tiny, storage_of: Callable[[str], Path]
) -> None:
    storage, distances = storage_of("s"), []
    for size in (1, 7, 1000):
        shutil.rmtree(storage / "tiny" / "features")
        shutil.rmtree(storage / "tiny" / "score")
        Pipeline(tiny(storage, features={"shard_images": size}), executor_for).score()
        scores = pq.read_table(storage / "tiny" / "score" / "fid.parquet")
        distances.append(scores["distance"].to_numpy())
    for other in distances[1:]:
        np.testing.assert_allclose(other, distances[0], rtol=1e-4)


def parts_of(folder: Path, features_ND: np.ndarray, size: int) -> list[Path]:
    paths = []
    for start in range(0, len(features_ND), size):
        paths.append(folder / f"part-{start}.parquet")
        write_features(
            paths[-1],
            features_ND[start : start + size],
            np.arange(start, start + size)[: len(features_ND) - start],
        )
    return paths


@pytest.mark.parametrize("count", [2, 19, 20, 21, 200])
def test_moments_of_parts_equal_those_of_all_rows(tmp_path: Path, count: int) -> None:
    generator = np.random.default_rng(count)
    mixing = generator.normal(size=(20, 20))
    x = (generator.normal(size=(count, 20)) @ mixing).astype(np.float32)
    other = moments(generator.normal(size=(300, 20)) @ mixing)
    found, whole = moments_of_parts(parts_of(tmp_path, x, 6)), moments(x)
    assert found.count == count
    np.testing.assert_allclose(found.mean_D, whole.mean_D, rtol=1e-12, atol=1e-13)
    assert frechet_distance(found, other) == pytest.approx(frechet_distance(whole, other), rel=1e-9)


def test_a_nan_feature_names_its_image(tmp_path: Path) -> None:
    x = np.ones((10, 3), np.float32)
    x[7, 1] = np.nan
    with pytest.raises(DataError, match=r"image 7\b"):
        moments_of_parts(parts_of(tmp_path, x, 4))


def test_damaged_files_are_named_and_only_they_are_made_again(
    tiny: Tiny,
    storage_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = storage_of("d")
    run = rescored(tiny, storage)
    before = results(run)
    part, moments_file = (
        run / "features/target-gaussian_noise/part-00003.parquet",
        run / "features/experience-snow" / MOMENTS,
    )
    flip(part)
    moments_file.write_bytes(moments_file.read_bytes()[:100])
    written = []
    write = stage.write_features
    monkeypatch.setattr(
        stage, "write_features", lambda path, *rest: (written.append(path), write(path, *rest))
    )
    Pipeline(tiny(storage, features=SHARDS), executor_for).score()
    assert written == [part]
    for path in (part, moments_file):
        assert sum(f"{path} is damaged" in line for line in caplog.messages) == 1
    assert results(run) == before


def test_a_damaged_shard_of_an_unfinished_environment_is_made_again(
    tiny: Tiny, storage_of: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    storage = storage_of("u")
    run = rescored(tiny, storage)
    before = results(run)
    (run / "features/experience-snow/manifest.json").unlink()
    flip(run / "features/experience-snow/part-00002.parquet")
    Pipeline(tiny(storage, features=SHARDS), executor_for).score()
    assert any("experience-snow/part-00002.parquet is damaged" in line for line in caplog.messages)
    assert results(run) == before


def flip(path: Path) -> None:
    """Flip one bit in the middle of the values."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))


def test_a_feature_file_with_a_changed_bit_is_refused(tmp_path: Path) -> None:
    (path,) = parts_of(tmp_path, np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32), 50)
    whole = path.read_bytes()
    start = whole.index(read_features(path)[0][20].tobytes())
    for place in (start, start + 9, start + 31):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"part-0\.parquet is missing or damaged"):
            read_features(path)


def test_another_alpha_needs_no_new_features(tiny: Tiny, storage_of: Callable[[str], Path]) -> None:
    storage = storage_of("a")
    run = rescored(tiny, storage)
    times = {p: p.stat().st_mtime_ns for p in run.glob("features/*/*")}
    pipeline = Pipeline(tiny(storage, features=SHARDS, experiences={"alpha": 0.5}), executor_for)
    pipeline.restart("score")
    pipeline.score()
    assert {p: p.stat().st_mtime_ns for p in run.glob("features/*/*")} == times


def deadly() -> Callable[[int], int]:
    def work(x: int) -> int:
        if x == 1:
            os._exit(1)
        return x

    return work


@pytest.mark.slow
@pytest.mark.distributed
def test_an_item_that_kills_every_actor_is_named(cluster: None) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.raises(
        WorkerError,
        match=r"Workers died in all 4 attempts at [012] \(or .* with it\)\. Ray says: .*run the same",
    ):
        list(pool.map_items(deadly, [0, 1, 2], workers=1))


@pytest.mark.soak
def test_killing_the_driver_at_random_moments_loses_nothing(tiny: Tiny, scored: Path, tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    settings = tiny(tmp_path / "runs", features=SHARDS, mining={"shard_images": 10})
    config.write_text(settings.model_dump_json(exclude_none=True), encoding="utf-8")  # JSON is YAML
    Pipeline(tiny(tmp_path / "whole", features=SHARDS, mining={"shard_images": 10}), executor_for).mine()
    expected = results(rescored(tiny, tmp_path / "whole", mining={"shard_images": 10}))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["metarepair.stages.pipeline"])
    generator, run = np.random.default_rng(1), tmp_path / "runs" / "tiny"
    for number in range(11):
        for verb in ("mine", "score"):
            child = context.Process(target=main, args=([verb, "--config", str(config)],))
            child.start()
            child.join(float(generator.uniform(0.1, 2.5)) if number < 10 else None)
            child.kill()
            child.join()
            for path in run.rglob("manifest.json"):
                manifest = read_manifest(path.parent)
                assert manifest is not None
                verify_checksums(path.parent, manifest)
    assert results(run) == expected


def test_moments_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = moments(np.random.default_rng(0).normal(size=(5, 7)))
    write_moments(tmp_path / MOMENTS, found)
    again = read_moments(tmp_path / MOMENTS)
    assert again.count == 5
    np.testing.assert_array_equal(again.mean_D, found.mean_D)
    np.testing.assert_array_equal(again.factor_RD, found.factor_RD)

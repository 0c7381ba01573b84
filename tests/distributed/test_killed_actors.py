"""Killing actors while they compute features changes no finished file; only shards in flight are repeated."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import ray

from distributed.on_ray import pool
from distributed.stages.executor import executor_for
from metarepair.config.run import Config
from metarepair.stages import features as stage
from metarepair.stages.features import MOMENTS
from metarepair.stages.pipeline import Pipeline
from tasks.storage.sealed_parts import seal_of

Tiny = Callable[..., Config]
SHARDS = {"extractor": "deployed", "shard_images": 4}
WORKERS, DEATHS = 2, 10
Files = dict[Path, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Death:
    """The feature files just before a kill: those in a manifest, other sealed ones, and all."""

    promised: Files
    sealed: Files
    every: Files


@pytest.mark.distributed
@pytest.mark.soak
def test_killing_actors_at_random_moments_loses_nothing(
    cluster: None, tiny: Tiny, storage_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    storage = storage_of("killed")
    run = storage / "tiny"
    shutil.rmtree(run / "features")
    shutil.rmtree(run / "score")
    Pipeline(tiny(storage, features=SHARDS), executor_for).score()
    expected = results(run)
    monkeypatch.setattr(stage, "_build_extractor", build_slowly)
    monkeypatch.setattr(pool, "ATTEMPTS", DEATHS + 1)  # by chance, every kill may hit the same shard
    generator, total, in_the_midst = np.random.default_rng(0), 0, 0
    while total < DEATHS:
        shutil.rmtree(run / "score")
        for folder in run.glob("features/*"):
            if folder.name != "experience-snow":  # stays finished from the start
                shutil.rmtree(folder)
        pipeline = Pipeline(tiny(storage, features=SHARDS, workers=WORKERS), executor_for)
        deaths = deaths_during(pipeline.score, run, generator, DEATHS - total)
        assert deaths
        assert results(run) == expected
        following = [*(death.every for death in deaths[1:]), feature_files(run).every]
        for death, later in zip(deaths, following, strict=True):
            assert death.promised
            assert death.promised.items() <= later.items()
            # Only shards that were handed out and not yet reported done may be repeated.
            assert len(death.sealed.items() - later.items()) <= WORKERS * pool.IN_FLIGHT
        total += len(deaths)
        in_the_midst += sum(bool(death.sealed) for death in deaths)
    assert in_the_midst >= 2


def build_slowly(config: Config) -> Callable[[stage.FeatureShard], int]:
    """Build an extractor that is slow enough to be killed while it works on a shard."""
    work = stage._build_extractor(config)  # runs in an actor, where the module is not patched

    def slowly(shard: stage.FeatureShard) -> int:
        time.sleep(0.2)
        return work(shard)

    return slowly


def deaths_during(
    score: Callable[[], object], run: Path, generator: np.random.Generator, most: int
) -> list[Death]:
    """Call `score` while actors are killed, alternately at any moment and soon after a file is finished."""
    over, deaths = threading.Event(), list[Death]()

    def kill() -> None:
        while len(deaths) < most and not over.wait(float(generator.uniform(0.05, 1.0))):
            death, pids = feature_files(run), actor_pids()
            waits = len(deaths) % 2 == 0 and not death.sealed.items() - (
                deaths[-1].sealed.items() if deaths else set()
            )
            if pids and not waits:
                os.kill(int(generator.choice(pids)), signal.SIGKILL)
                deaths.append(death)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        score()
    finally:
        over.set()
        killer.join()
    return deaths


def feature_files(run: Path) -> Death:
    """Record the inode and modification time of each feature file."""
    every: Files = {}
    for path in run.glob("features/*/*"):
        with suppress(FileNotFoundError):  # a file in progress was renamed meanwhile
            every[path] = (path.stat().st_ino, path.stat().st_mtime_ns)
    finished = [path.parent for path in every if path.name == "manifest.json"]
    return Death(
        promised={p: state for p, state in every.items() if p.parent in finished},
        sealed={p: s for p, s in every.items() if p.parent not in finished and seal_of(p) in every},
        every=every,
    )


def actor_pids() -> list[int]:
    """Return the process ids of actors in this process's cluster; another cluster's must not be killed."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::_Actor" in path.read_bytes() and is_descendant(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def is_descendant(pid: int) -> bool:
    while pid > 1 and pid != os.getpid():
        status = Path(f"/proc/{pid}/stat").read_text()
        pid = int(status.rpartition(")")[2].split()[1])  # the parent's id; a name may contain spaces
    return pid == os.getpid()


def results(run: Path) -> dict[str, bytes]:
    files = [
        *run.glob("features/*/*.parquet"),
        *run.glob(f"features/*/{MOMENTS}"),
        *run.glob("score/*.parquet"),
    ]
    return {str(p.relative_to(run)): p.read_bytes() for p in files}

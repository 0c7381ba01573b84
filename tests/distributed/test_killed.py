"""SIGKILL of a worker, an actor, the driver or a raylet at random moments changes no bit of weights and shards.

No process is left behind. METAREPAIR_KILLS is the number of kills of each kind (default 1; `make accept` uses 5).
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from distributed.stages.executor import executor_for
from metarepair.config.run import Config
from metarepair.runs.layout import Run
from metarepair.stages.pipeline import Pipeline
from waiting import output_at_end, wait_for_end, wait_until

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

Tiny = Callable[..., Config]
StorageOf = Callable[[str], Path]
KILLS = int(os.environ.get("METAREPAIR_KILLS", "1"))
TARGET = "gaussian_noise"
LOSING_NODES = Path(__file__).with_name("losing_nodes.py")
done: Callable[[Run, str], int] = runpy.run_path(str(LOSING_NODES))["done"]
# Eight rounds for each kill, and eight more; a round takes a second or two.
TRAIN = {"episodes": 16 * (1 + KILLS), "round_episodes": 2}
MINING = {"shard_images": 20}


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """The environment of a driver with its own Ray, in a temporary folder whose path is short, for socket names."""
    with tempfile.TemporaryDirectory(prefix="mr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ours = {**os.environ, "RAY_TMPDIR": folder, "OMP_NUM_THREADS": "1"}
        ours["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
        ours["PYTHONPATH"] = str(Path.cwd())
        ours.pop("RAY_ADDRESS", None)
        yield ours


@pytest.fixture
def seed() -> int:
    """A new seed each time, printed so that a failure can be examined."""
    chosen = int(time.time())
    print("seed", chosen)
    return chosen


@pytest.fixture(scope="session")
def whole(tiny: Tiny, scored: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """θ_meta of an uninterrupted training without Ray; two workers give the same bits, also in float32."""
    import shutil

    storage = Path(shutil.copytree(scored, tmp_path_factory.mktemp("whole") / "runs"))
    Pipeline(tiny(storage, train=TRAIN), executor_for).train()
    return weights(storage)


@pytest.fixture(scope="session")
def mined(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards of an uninterrupted mining without Ray."""
    storage = tmp_path_factory.mktemp("mined")
    Pipeline(tiny(storage, mining=MINING), executor_for).mine()
    return shards(storage)


def weights(storage: Path) -> dict[str, torch.Tensor]:
    return load_file(Run(storage / "tiny").meta(TARGET) / "start.safetensors")


def shards(storage: Path) -> dict[str, bytes]:
    root = storage / "tiny"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.arrow")}


def written(config: Config, folder: Path) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    return str(path)


@dataclass(frozen=True, kw_only=True)
class Driver:
    """A running `metarepair` command, and the file that receives its output."""

    process: subprocess.Popen[bytes]
    said: Path


def started(verb: str, config: str, environment: dict[str, str]) -> Driver:
    command, said = [sys.executable, "-m", "metarepair", verb, "--config", config], Path(config + ".log")
    with said.open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
        )
    return Driver(process=process, said=said)


def descendants(pid: int) -> dict[int, str]:
    """Return the command lines of all processes below `pid`, by process id."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = (path / "stat").read_text()
            names[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        children.setdefault(int(status.rpartition(")")[2].split()[1]), []).append(int(path.name))
    found, next_ones = {}, [pid]
    while next_ones:
        for child in children.get(next_ones.pop(), []):
            found[child] = names[child]
            next_ones.append(child)
    return found


def alive(pids: dict[int, str]) -> dict[int, str]:
    """Return those of `pids` that still run."""
    now = {}
    for pid, name in pids.items():
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                now[pid] = name
        except OSError:
            continue
    return now


def wait_until_gone(pids: dict[int, str]) -> None:
    wait_until(
        lambda: not alive(pids),
        "the end of what the driver had started",
        output=lambda: "\n".join(f"{pid} {name}" for pid, name in alive(pids).items()),
    )


def wait_for_progress(driver: Driver, run: Run, stage: str, seen: int) -> None:
    wait_until(
        lambda: done(run, stage) > seen,
        f"more than {seen} shards or episodes of {stage}",
        process=driver.process,
        output=driver.said,
    )


def kill_at_random(driver: Driver, run: Run, stage: str, who: str, generator: np.random.Generator) -> None:
    """Kill a process whose command line starts with `who`, KILLS times, each time soon after progress."""

    def them() -> list[int]:
        return [pid for pid, name in descendants(driver.process.pid).items() if name.startswith(who)]

    for _ in range(KILLS):
        wait_for_progress(driver, run, stage, done(run, stage))
        time.sleep(float(generator.uniform(0.0, 0.5)))
        found = wait_until(them, f"a process called {who}", process=driver.process, output=driver.said)
        os.kill(int(generator.choice(found)), signal.SIGKILL)


def assert_ends_well(driver: Driver) -> None:
    """Check that the driver ends with exit code 0 and that no process that it started is left."""
    below = descendants(driver.process.pid)
    assert wait_for_end(driver.process, output=driver.said) == 0, driver.said.read_text(encoding="utf-8")
    wait_until_gone(below)


def test_training_survives_killed_workers(
    tiny: Tiny, storage_of: StorageOf, tmp_path: Path, environment: dict[str, str], seed: int, whole: object
) -> None:
    storage = storage_of("killed")
    config = tiny(storage, workers=2, train=TRAIN, ray={"max_failures": -1})
    driver = started("train", written(config, tmp_path), environment)
    generator = np.random.default_rng(seed)
    kill_at_random(driver, Run(storage / "tiny"), "train", "ray::RayTrainWorker", generator)
    assert_ends_well(driver)
    assert_same(weights(storage), whole)


def test_mining_survives_killed_actors(
    tiny: Tiny, tmp_path: Path, environment: dict[str, str], seed: int, mined: object
) -> None:
    config = tiny(tmp_path, workers=2, mining=MINING)
    driver = started("mine", written(config, tmp_path), environment)
    generator = np.random.default_rng(seed)
    kill_at_random(driver, Run(tmp_path / "tiny"), "mine", "ray::_Actor", generator)
    assert_ends_well(driver)
    assert shards(tmp_path) == mined


@pytest.mark.parametrize("stage", [pytest.param("mine", marks=pytest.mark.soak), "train"])
def test_a_killed_driver_leaves_no_orphans_and_the_same_command_resumes(
    stage: str,
    tiny: Tiny,
    storage_of: StorageOf,
    tmp_path: Path,
    environment: dict[str, str],
    seed: int,
    whole: object,
    mined: object,
) -> None:
    storage = storage_of("killed") if stage == "train" else tmp_path
    config = written(tiny(storage, workers=2, train=TRAIN, mining=MINING), tmp_path)
    run, generator = Run(storage / "tiny"), np.random.default_rng(seed)
    for _ in range(KILLS):
        seen = done(run, stage)
        driver = started(stage, config, environment)
        wait_for_progress(driver, run, stage, seen)
        time.sleep(float(generator.uniform(0, 0.5)))
        below = descendants(driver.process.pid)
        driver.process.kill()
        driver.process.wait()
        wait_until_gone(below)
    assert_ends_well(started(stage, config, environment))
    if stage == "train":
        assert_same(weights(storage), whole)
    else:
        assert shards(tmp_path) == mined


@pytest.mark.soak
@pytest.mark.parametrize("stage", ["mine", "train"])
def test_a_stage_survives_the_killed_raylet_of_another_node(
    stage: str,
    tiny: Tiny,
    storage_of: StorageOf,
    tmp_path: Path,
    environment: dict[str, str],
    seed: int,
    whole: object,
    mined: object,
) -> None:
    storage = storage_of("killed") if stage == "train" else tmp_path
    config = tiny(storage, workers=2, train=TRAIN, mining=MINING, ray={"max_failures": -1})
    command = [sys.executable, str(LOSING_NODES), written(config, tmp_path), stage, str(KILLS), str(seed)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    said = output_at_end(process)
    assert process.returncode == 0, said
    assert json.loads(said.splitlines()[-1]) == {"deaths": KILLS}
    if stage == "train":
        assert_same(weights(storage), whole)
    else:
        assert shards(tmp_path) == mined


def assert_same(ours: dict[str, torch.Tensor], theirs: object) -> None:
    assert isinstance(theirs, dict)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)

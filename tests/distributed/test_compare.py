"""A comparison on a real local Ray repairs like one process; results keep their order, and errors their type."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from distributed.on_ray.on_worker import call_on_worker, map_on_workers
from distributed.stages.executor import executor_for
from metarepair.config.run import Config
from metarepair.stages.compare import Comparison
from tasks.errors import ConfigError, DataError

pytestmark = pytest.mark.distributed
Tiny = Callable[..., Config]
# Tasks cannot import a test module by its name.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
SETTINGS = {"methods": ["none", "bn_adapt", "finetune", "apricot"], "seeds": [0, 1], "budget": "4steps"}
REDUCED = {"apricot": {"reduced": {"models": 2, "per_class": 5, "epochs": 1}}}  # prepared in pieces


def backwards(item: int) -> int:
    import time

    time.sleep(0.3 if item == 0 else 0)
    if item == 99:
        raise DataError("piece 99 is broken")
    return -item


def logging_work(config: Config, words: str) -> None:
    logging.getLogger("metarepair.somewhere").info("%s: %s", config.name, words)
    logging.getLogger("tasks").debug("not asked for")
    logging.getLogger("another.package").info("not ours")
    if words == "break":
        raise DataError("it broke")


@pytest.mark.slow
def test_two_workers_make_the_same_repairs_as_one_process(
    cluster: None, tiny: Tiny, storage_of: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for name, workers in (("here", 0), ("ray", 2)):
        storage = storage_of(name)
        caplog.clear()
        Comparison(tiny(storage, workers=workers, compare=SETTINGS, methods=REDUCED), executor_for).compare()
        folder = storage / "tiny" / "compare"
        weights = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("model.safetensors")}
        rows = pq.read_table(folder / "rows.parquet").to_pylist()
        numbers = [(r["method"], r["seed"], r["d_fail"], r["clean"], r["corrupted"]) for r in rows]
        prepared = [p.read_bytes() for p in sorted((storage / "tiny" / "prepared").rglob("*.safetensors"))]
        assert len(prepared) == 2
        found.append((weights, numbers, prepared))
        assert any("finetune, seed 1: repaired in" in line for line in caplog.messages)
    assert len(found[0][0]) == 8
    assert found[0] == found[1]


def test_results_of_workers_keep_the_order_of_their_items(cluster: None, tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(tmp_path, workers=2)
    assert list(map_on_workers(config, backwards, [0, 1, 2, 3])) == [0, -1, -2, -3]
    with pytest.raises(DataError, match="piece 99"):
        list(map_on_workers(config, backwards, [1, 99]))


def test_a_workers_log_lines_and_error_reach_the_driver_unchanged(
    cluster: None, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError, match="it broke"):
        call_on_worker(logging_work, tiny(tmp_path, workers=1), "break")
    assert caplog.record_tuples == [("metarepair.somewhere", logging.INFO, "tiny: break")]


def test_a_worker_without_the_drivers_corruption_plugin_is_refused(
    cluster: None, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(tmp_path, workers=1)
    for module in ("on_ray.on_worker", "stages.executor", "stages.train"):
        monkeypatch.setattr(f"distributed.{module}.plugins_of", lambda _: {"grains": "grain-kit==2.0"})
    refused = r"'grains' is that of grain-kit==2\.0, but a Ray worker on .* has no such corruption"
    with pytest.raises(ConfigError, match=refused):
        call_on_worker(logging_work, config, "go")
    with pytest.raises(ConfigError, match=refused):
        list(map_on_workers(config, backwards, [1, 2]))
    with pytest.raises(ConfigError, match=refused):
        list(executor_for(config).map(lambda: backwards, [1, 2], one_cpu=True))

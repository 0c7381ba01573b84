"""Check that a worker's corruption plugins are compared with those of the process that started the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed.on_ray import corruption_plugins, on_worker
from distributed.on_ray.corruption_plugins import build_checked, check_worker, plugins_of
from distributed.on_ray.failures import read_failure
from distributed.stages import executor, train
from metarepair.config.load import parse_config
from plugin_packages import install, plugin_path
from tasks.errors import ConfigError, DataError

HERE = {"grains": "grain-kit==1.0"}
ELSEWHERE = {"grains": "grain-kit==2.0"}
REFUSED = r"'grains' is that of grain-kit==2\.0, but a Ray worker on node7 has that of grain-kit==1\.0\."


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with plugin_path(monkeypatch):
        install(tmp_path / "kit")
        monkeypatch.setattr(corruption_plugins.platform, "node", lambda: "node7")
        yield


def config_of(**changes: Any) -> Any:
    return parse_config({"name": "unit", "workers": 1, "mining": {"experiences": ["fog"]}, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": ["grains"]},
        {"mining": {"experiences": ["fog", "GRAINS"]}},
        {"evaluate": {"others": ["snow", "grains"]}},
        {"experiences": {"choice": "list", "names": ["grains"]}},
    ],
)
def test_every_setting_that_names_corruptions_counts(changes: dict[str, Any]) -> None:
    assert plugins_of(config_of(**changes)) == HERE
    assert plugins_of(config_of()) == {}


def test_a_worker_with_another_version_is_refused_with_its_node_and_both_versions() -> None:
    assert build_checked(HERE, lambda: 7) == 7
    with pytest.raises(ConfigError, match=REFUSED):
        check_worker(ELSEWHERE)


def test_a_refused_worker_builds_nothing() -> None:
    with pytest.raises(ConfigError, match=REFUSED):
        build_checked(ELSEWHERE, pytest.fail)


def test_a_task_checks_before_it_reads_settings_that_name_unknown_corruptions() -> None:
    settings = config_of(targets=["grains"]).model_dump(mode="json") | {"targets": ["no_such_corruption"]}
    with pytest.raises(ConfigError, match=REFUSED):
        list(on_worker._records_of(pytest.fail, settings, ELSEWHERE, (), 0))


def test_a_rank_with_another_version_writes_the_error_and_a_restarted_group_ends(tmp_path: Path) -> None:
    ran: list[Any] = []
    train._checked(ran.append, HERE, tmp_path)({"rank": 0})
    assert ran == [{"rank": 0}]
    refused = train._checked(ran.append, ELSEWHERE, tmp_path)
    with pytest.raises(ConfigError, match=REFUSED):
        refused({})
    assert isinstance(read_failure(tmp_path), ConfigError)
    refused({})
    assert len(ran) == 1


def test_a_rank_passes_errors_of_the_loop_on(tmp_path: Path) -> None:
    def loop(_: Any) -> None:
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        train._checked(loop, HERE, tmp_path)({})
    assert read_failure(tmp_path) is None


def test_the_executor_hands_its_own_versions_to_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(
        executor, "map_items", lambda build, items, **_: given.append((build, items)) or iter(())
    )
    ray = executor.OnRay(config_of(targets=["grains"]))
    assert list(ray.map(lambda: lambda item: item, [1, 2])) == []
    ((build, items),) = given
    assert (build.func, build.args[0], items) == (build_checked, HERE, [1, 2])
    assert build()(5) == 5

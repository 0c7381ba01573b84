"""Test that the digests of stages cover the settings that a result depends on, and no fact of the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from distributed.search.tune import search_settings
from metarepair.compare.prepare import preparation_settings
from metarepair.compare.units import unit_settings
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.meta_training.meta_train import training_settings
from metarepair.methods import get_method
from metarepair.repairs.stage import repair_settings
from metarepair.runs.layout import run_of
from metarepair.stages.features import feature_settings
from metarepair.stages.hypothesis import study_settings
from metarepair.stages.merged import merged_settings
from metarepair.stages.mining import environments, mining_settings
from metarepair.stages.pretrain import pretraining_settings
from metarepair.stages.score import score_settings
from plugin_packages import install, plugin_path
from tasks.storage.settings import changes

RECORDED: dict[str, Callable[[Config], Mapping[str, Any]]] = {
    "pretrain": pretraining_settings,
    "mine": lambda config: mining_settings(config, environments(run_of(config), config)[-1]),
    "features": feature_settings,
    "score": score_settings,
    "train": training_settings,
    "merged": merged_settings,
    "repair": repair_settings,
    "hypothesis": study_settings,
    "search": search_settings,
    "prepare": lambda config: preparation_settings(config, "apricot"),
    "compare": lambda config: unit_settings(config, get_method("metarepair")),
}
SETTINGS: dict[str, Any] = {
    "name": "one",
    "mining": {"experiences": ["fog", "snow"]},
    "targets": ["frost"],
    "features": {"extractor": "deployed"},
    "search": {"trials": 2, "space": {"train.outer_rate": {"log_uniform": [1e-4, 1e-2]}}},
}
OF_THE_MACHINE: dict[str, Any] = {
    "name": "two",
    "storage_path": "s3://bucket/runs",
    "device": "cuda",
    "workers": 4,
    "trackers": ["mlflow", "wandb"],
    "ray": {"min_workers": 2, "gpus_per_worker": 0.5, "max_failures": 9, "wait_s": 60.0, "timeout_s": 99},
    "data": {"root": "/mnt/elsewhere"},
    "mining": {**SETTINGS["mining"], "batch_size": 7, "shard_images": 11},
    "features": {"extractor": "deployed", "batch_size": 7},
    "train": {
        "threads": 3,
        "memory": "recompute",
        "theta_on_host": True,
        "max_skipped": 1,
        "kept_checkpoints": 9,
    },
    "search": {**SETTINGS["search"], "max_concurrent": 3, "max_failures": 9},
}


@pytest.mark.parametrize("stage", RECORDED)
def test_no_fact_of_the_machine_is_among_the_recorded_settings(stage: str) -> None:
    recorded = RECORDED[stage]
    one = parse_config(SETTINGS)
    other = parse_config(SETTINGS | OF_THE_MACHINE)
    assert one != other
    assert recorded(one) == recorded(other)
    reseeded = parse_config(SETTINGS | {"seed": 1})
    assert (recorded(one) != recorded(reseeded)) == (stage not in ("features", "score"))


def test_a_repair_records_the_versions_of_plugins_that_it_is_evaluated_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = repair_settings(parse_config(SETTINGS | {"evaluate": {"others": ["fog"]}}))
    assert "corruption_plugins" not in plain
    with plugin_path(monkeypatch):
        install(tmp_path, version="1.0")
        first = repair_settings(parse_config(SETTINGS | {"evaluate": {"others": ["grains"]}}))
    assert first["corruption_plugins"] == {"grains": "grain-kit==1.0"}
    with plugin_path(monkeypatch):
        install(tmp_path / "newer", version="1.1")
        second = repair_settings(parse_config(SETTINGS | {"evaluate": {"others": ["grains"]}}))
    assert changes(first, second) == ["corruption_plugins.grains: grain-kit==1.0 -> grain-kit==1.1"]

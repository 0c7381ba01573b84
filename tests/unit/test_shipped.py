"""Check `shipped:NAME` for settings and photographs."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarepair.config.load import load_config
from metarepair.config.photographs import Photographs
from metarepair.shipped import shipped_config, shipped_photographs
from tasks.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_shipped_settings_are_those_of_the_top_level_folder() -> None:
    assert shipped_config("shipped:sample").samefile(ROOT / "tune_configs" / "sample.yaml")
    assert load_config("shipped:sample") == load_config(ROOT / "tune_configs" / "sample.yaml")


def test_a_path_stays_a_path() -> None:
    assert shipped_config("mine/sample.yaml") == Path("mine/sample.yaml")
    assert shipped_photographs("photos/night") == "photos/night"


def test_shipped_photographs_are_those_of_the_package() -> None:
    settings = Photographs(
        out="fixed", kit="kit", images="shipped:photographs", holdout="shipped:photographs_later"
    ).settings()
    found = settings["environments"]["photographs"]
    assert Path(found["images"]).samefile(ROOT / "tasks" / "sample" / "photographs.parquet")
    assert Path(found["holdout"]).samefile(ROOT / "tasks" / "sample" / "photographs_later.parquet")


@pytest.mark.parametrize("name", ["sampel", "../sample", "", "sample.yaml"])
def test_settings_that_are_not_shipped_are_refused_with_the_names(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is not shipped.*shipped:kit_resnet8, .*shipped:sample"):
        load_config(f"shipped:{name}")


def test_photographs_that_are_not_shipped_are_refused_with_near_names() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'photographs'.*There are: shipped:photographs, "):
        shipped_photographs("shipped:photograps")

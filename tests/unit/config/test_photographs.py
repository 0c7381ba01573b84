"""Test the settings that a model, photographs and clean images give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from metarepair.config.load import parse_config
from metarepair.config.photographs import NAME, Photographs
from tasks.errors import ConfigError

GIVEN = Photographs(out="work/repaired", images="night", clean="clean", model="my:net", weights="net.th")


def test_photographs_describe_a_run_with_one_target() -> None:
    config = parse_config(GIVEN.settings() | {"mining": {"experiences": ["fog"]}})
    assert (config.storage_path, config.name, config.targets) == (
        str(Path("work").resolve()),
        "repaired",
        (NAME,),
    )
    assert (config.model.name, config.model.weights) == ("my:net", str(Path("net.th").absolute()))
    assert (config.data.name, config.data.root) == ("images", str(Path("clean").absolute()))
    assert config.environments[NAME].images == str(Path("night").absolute())
    assert config.environments[NAME].table is None


@pytest.mark.parametrize("file", ["night.csv", "night.jsonl", "NIGHT.CSV"])
def test_a_file_of_paths_is_a_table(file: str) -> None:
    environment = replace(GIVEN, images=file, holdout="later").settings()["environments"][NAME]
    assert environment == {"table": str(Path(file).absolute()), "holdout": str(Path("later").absolute())}


def test_a_kit_stands_for_the_model_and_its_clean_images() -> None:
    settings = Photographs(out="repaired", images="night", kit="kit").settings()
    assert settings["kit"] == str(Path("kit").absolute())
    assert not {"model", "data"} & set(settings)


def test_a_folder_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="names no folder"):
        replace(GIVEN, out="/").settings()


def test_a_relative_path_and_its_absolute_one_give_the_same_settings() -> None:
    here = Path.cwd()
    again = replace(
        GIVEN,
        out=str(here / "work" / "repaired"),
        images=str(here / "night"),
        clean=str(here / "clean"),
        weights=str(here / "net.th"),
    )
    assert again.settings() == GIVEN.settings()


@pytest.mark.parametrize("text", ["shipped:resnet8_cifar10", "s3://bucket/net.th", "gs://bucket/net.th"])
def test_shipped_names_and_addresses_stay_as_given(text: str) -> None:
    settings = replace(GIVEN, weights=text, kit=text).settings()
    assert (settings["model"]["weights"], settings["kit"]) == (text, text)

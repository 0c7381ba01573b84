"""Test that settings of older versions are translated, with a note, into those of today."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from metarepair.config.load import load_config, parse_config
from metarepair.search.rules import check_setting
from tasks.errors import ConfigError

LEAST: dict[str, Any] = {"name": "x", "mining": {"experiences": ["fog"]}}


@pytest.mark.parametrize(
    ("old", "query"),
    [
        ({"clean_weight": 0.0}, {"failures": 1.0}),
        ({"clean_weight": 0.25}, {"failures": 0.75, "clean": 0.25}),
        ({"clean_weight": 1}, {"failures": 0.0, "clean": 1.0}),
        (
            {"clean_weight": 0.5, "clean_corrupted": 0.5},
            {"failures": 0.5, "environment": 0.25, "clean": 0.25},
        ),
    ],
)
def test_old_weights_are_shares(old: dict[str, float], query: dict[str, float]) -> None:
    config = parse_config(LEAST | {"train": {"episodes": 20, **old}})
    assert config == parse_config(LEAST | {"train": {"episodes": 20, "query": query}})


def test_a_file_and_the_command_line_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("name: x\nmining: {experiences: [fog]}\ntrain: {clean_weight: 0.5}\n")
    with caplog.at_level(logging.WARNING):
        config = load_config(path, ["train.clean_corrupted=0.5"])
    assert config.train.query.environment == 0.25
    assert "now written as train.query: {failures: 0.5, environment: 0.25, clean: 0.25} (in" in caplog.text
    assert str(path) in caplog.text


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"clean_weight": 2}, r"train\.clean_weight=2 must be a number from 0 to 1"),
        ({"clean_weight": True}, "must be a number"),
        ({"clean_weight": "half"}, "must be a number"),
        ({"clean_corrupted": 0.5}, "that train.clean_weight weighs"),
        ({"clean_weight": 0.5, "query": {"clean": 1}}, "both are given"),
    ],
)
def test_what_cannot_be_translated_is_refused(train: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(LEAST | {"train": train})


@pytest.mark.parametrize(
    ("size", "query"),
    [(20, {"failures": 1, "clean": 0.98, "right": 0.02}), (1, {"clean": 1, "environment": 1})],
)
def test_a_share_of_less_than_an_image_is_refused(size: int, query: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="less than an image of the"):
        parse_config(LEAST | {"task": {"query_size": size}, "train": {"query": query}})


def test_an_old_name_in_a_search_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"now a share of train\.query; search train\.query\.clean"):
        check_setting("train.clean_weight")

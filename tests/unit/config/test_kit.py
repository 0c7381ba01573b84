"""Check the settings that a repair kit gives to a run, and those that it is made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from metarepair.config.kit import check_kit_settings, kit_defaults, merged, with_kit
from metarepair.config.load import load_config, parse_config
from tasks.corruptions import CORRUPTIONS
from tasks.datasets.cifar_classes import CIFAR10_CLASSES
from tasks.errors import ConfigError, StageError

NAMED = {"name": "kit", "storage_path": "runs"}


def test_groups_are_merged_and_what_is_given_stays() -> None:
    usual = {"train": {"episodes": 60, "query": {"clean": 0.5}}, "seed": 1, "targets": []}
    given = {"train": {"query": {"failures": 1.0}}, "targets": ["fog"], "name": "x"}
    assert merged(usual, given) == {
        "train": {"episodes": 60, "query": {"clean": 0.5, "failures": 1.0}},
        "seed": 1,
        "targets": ["fog"],
        "name": "x",
    }
    assert usual["targets"] == []


def test_a_kit_is_made_from_all_corruptions_and_starts_from_joint_training() -> None:
    config = parse_config(kit_defaults(workers=0) | NAMED)
    check_kit_settings(config)
    assert config.mining.experiences == tuple(CORRUPTIONS)
    assert (config.targets, config.trainings) == ((), ("shared",))
    assert (config.train.shared, config.train.start, config.features.extractor) == (True, "joint", "deployed")


def test_settings_of_a_file_replace_those_of_a_kit(tmp_path: Path) -> None:
    file = tmp_path / "kit.yaml"
    file.write_text(yaml.safe_dump({"mining": {"collect": 7}, "joint": {"rounds": 3}}), encoding="utf-8")
    config = load_config(file, ["train.episodes=5"], usual=kit_defaults(workers=0), **NAMED)
    assert (config.mining.collect, config.joint.rounds, config.train.episodes) == (7, 3, 5)
    assert config.mining.images == 2500


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"targets": ["fog"]}, r"targets=\['fog'\]"),
        ({"train": {"shared": False}}, "train.shared=false"),
        ({"joint": {"draw": "confidence"}}, "joint.draw=confidence"),
        ({"experiences": {"choice": "top_k", "top_k": 2}}, "experiences.choice=top_k"),
        ({"preparation_budget": 60.0}, "preparation_budget"),
    ],
)
def test_what_serves_unknown_targets_has_no_targets_and_no_confidence(
    changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_kit_settings(parse_config(merged(kit_defaults(workers=0) | NAMED, changed)))


def test_settings_without_a_kit_are_left_as_they_are() -> None:
    values = {"name": "x", "mining": {"experiences": ["fog"]}}
    assert with_kit(values) is values


def test_a_folder_without_a_kit_and_an_unknown_shipped_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="is not a finished repair kit"):
        with_kit({"kit": str(tmp_path)})
    with pytest.raises(ConfigError, match="is not shipped"):
        with_kit({"kit": "shipped:nothing"})


SHIPPED = "shipped:resnet8_cifar10"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
            r"data\.mean=\[0\.5, 0\.5, 0\.5\] \(--mean\).*mean=\[0\.4914, .*std=\[0\.247, .*Leave --mean and --std",
        ),
        ({"mean": (0.4914, 0.4822, 0.4465), "std": (0.2, 0.2, 0.2)}, r"data\.std=\[0\.2, .*std=\[0\.247, "),
        ({"image_size": 64}, r"data\.image_size=64 \(--image-size\).*32 × 32 pixels\. Leave it out"),
        (
            {"classes": ["cat", "dog"]},
            r"2 classes here \(cat, dog\).*has 10: airplane, .*leave --classes out",
        ),
        (
            {"classes": [*CIFAR10_CLASSES[1:], CIFAR10_CLASSES[0]]},
            r"class 0 is 'automobile' here and 'airplane' there.*in the order of the kit.*--classes.*: airplane, auto",
        ),
    ],
)
def test_data_that_the_kits_dnn_was_not_made_for_are_refused(data: dict[str, Any], said: str) -> None:
    for values in ({"kit": SHIPPED, "data": data}, {"kit": SHIPPED, "data": data | {"name": "images"}}):
        with pytest.raises(ConfigError, match=said):
            with_kit(values)


def test_the_preprocessing_and_the_classes_of_the_kit_may_be_given_again() -> None:
    data = {
        "mean": (0.4914, 0.4822, 0.4465),
        "std": [0.247, 0.2435, 0.2616],
        "image_size": 32,
        "classes": CIFAR10_CLASSES,
    }
    found = with_kit({"kit": SHIPPED, "data": data, "model": {"name": "timm:resnet8_cifar"}})
    assert found["data"] | data == found["data"]
    assert found["model"]["mean"] == [0.4914, 0.4822, 0.4465]


def test_another_dnn_than_the_kits_is_refused_with_the_kits() -> None:
    with pytest.raises(
        ConfigError, match=r"than that of the kit .*, resnet8_cifar\. .*leave --model and --weights"
    ):
        with_kit({"kit": SHIPPED, "model": {"name": "timm:resnet18"}})


def test_refining_needs_a_kit_and_a_run_needs_experiences() -> None:
    own = {"name": "x", "mining": {"experiences": ["fog"]}}
    with pytest.raises(ConfigError, match="refine continues the meta-training of a kit"):
        parse_config(own | {"refine": 3})
    with pytest.raises(ConfigError, match=r"mining\.experiences=\[\]: it must have 1 or more entries"):
        parse_config({"name": "x", "mining": {"experiences": []}})

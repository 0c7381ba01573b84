"""Settings of a model of the hub: its commit, weights, preparation and class names are written into them once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hub_cache import COMMIT, cifar_files, put, use_cache
from metarepair.config.load import load_config, parse_config
from metarepair.config.run import Config
from tasks.errors import ConfigError, WeightsError

PINNED = f"hf-hub:me/net@{COMMIT}"
LEAST = {"name": "a", "mining": {"experiences": ["snow"]}}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = use_cache(monkeypatch, tmp_path / "hub")
    put(cache, "me/net", cifar_files(label_names=["fox", "cat", "big_dog"], num_classes=3))
    return cache


def settings(data: dict[str, Any] | None = None, **model: Any) -> Config:
    return parse_config(LEAST | {"model": {"name": "hf-hub:me/net"} | model, "data": data or {}})


def folders(root: Path, *names: str) -> dict[str, Any]:
    """The settings of a folder of class folders with an image each."""
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name / "1.png")
    return {"name": "images", "root": str(root)}


def test_the_settings_hold_the_commit_the_weights_and_the_preparation(cache: Path) -> None:
    model = settings().model
    assert (model.name, model.weights) == (PINNED, PINNED)
    assert (model.mean, model.std, model.input_size) == (
        (0.4914, 0.4822, 0.4465),
        (0.247, 0.2435, 0.2616),
        32,
    )


def test_a_model_of_no_hub_has_the_settings_of_before() -> None:
    assert parse_config(LEAST).model.settings() == Config.model_validate(LEAST).model.settings()


def test_written_settings_need_no_cache(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = settings().model_dump(mode="json")
    use_cache(monkeypatch, tmp_path / "another")
    assert parse_config(written).model_dump(mode="json") == written
    with pytest.raises(WeightsError, match=r"config\.json is not in the cache"):
        settings()


def test_a_revision_that_moves_on_is_another_setting(cache: Path) -> None:
    before = settings().model
    put(cache, "me/net", cifar_files(num_classes=3), commit="b" * 40)
    assert settings().model.name != before.name
    assert settings(name=before.name).model == before


def test_what_is_given_is_kept_and_null_means_none(cache: Path, tmp_path: Path) -> None:
    model = settings(weights="mine.pth", mean=(0.1, 0.1, 0.1), input_size=None).model
    assert (model.weights, model.mean, model.input_size) == ("mine.pth", (0.1, 0.1, 0.1), None)
    assert model.std == (0.247, 0.2435, 0.2616)
    assert settings(normalisation="dataset").model.mean is None
    assert settings({"mean": (0.3,) * 3, "std": (0.2,) * 3}).model.mean is None
    (tmp_path / "a.yaml").write_text(
        "name: a\nmining: {experiences: [snow]}\nmodel: {name: 'hf-hub:me/net', input_size: null}\n"
    )
    assert load_config(tmp_path / "a.yaml").model.input_size is None


@pytest.mark.parametrize(
    ("given", "classes"),
    [
        (("big dog", "cat", "fox"), ("fox", "cat", "big dog")),
        (("cat", "fox"), ("fox", "cat", "big_dog")),
        (("cat", "cow", "fox"), None),
        (("Cat", "cat", "fox"), None),
    ],
)
def test_class_folders_are_put_in_the_order_of_the_models_classes(
    cache: Path, tmp_path: Path, given: tuple[str, ...], classes: tuple[str, ...] | None
) -> None:
    data = folders(tmp_path / "clean", *given)
    assert settings(data).data.classes == classes
    assert settings(data | {"classes": ["b", "a"]}).data.classes == ("b", "a")


def test_labels_that_are_numbers_keep_their_names(cache: Path, tmp_path: Path) -> None:
    rows = "\n".join(json.dumps({"path": "1.png", "label": label}) for label in (0, 1, 2))
    (tmp_path / "clean.jsonl").write_text(rows)
    assert settings({"name": "images", "root": str(tmp_path / "clean.jsonl")}).data.classes is None
    assert settings({"name": "cifar10"}).data.classes is None


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"std": [0, 0, 0]}, r"std=\[0, 0, 0\] must be above 0"),
        ({"mean": [123, 116, 103]}, r"mean=\[123, 116, 103\] is outside 0\.\.1"),
    ],
)
def test_a_normalisation_that_cannot_be_is_blamed_on_the_hubs_file(
    cache: Path, stated: dict[str, Any], said: str
) -> None:
    put(cache, "me/odd", cifar_files(pretrained_cfg=stated))
    with pytest.raises(ConfigError, match=rf"^hf-hub:me/odd@{COMMIT}: by its config\.json, {said}"):
        settings(name="hf-hub:me/odd")
    own = {"mean": (0.1,) * 3, "std": (0.2,) * 3}
    assert settings(name="hf-hub:me/odd", **own).model.std == own["std"]


@pytest.mark.parametrize(
    "stated",
    [
        {"label_names": ["a", 2]},
        {"label_names": {"0": "a", "2": "b"}},
        {"label_names": "abc"},
        {"pretrained_cfg": {"mean": [0, 1], "std": ["1", 2, 3], "input_size": "big"}},
        {"pretrained_cfg": [1, 2]},
        {"pretrained_cfg": {"mean": [float("inf"), 0, 0]}},
        {"num_classes": "many"},
    ],
)
def test_statements_of_another_form_are_no_statements(
    cache: Path, tmp_path: Path, stated: dict[str, Any]
) -> None:
    usual = {"num_classes": 3} | ({} if "label_names" in stated else {"label_names": None})
    put(cache, "me/odd", cifar_files(**usual | stated))
    found = settings(folders(tmp_path / "clean", "b", "a"), name="hf-hub:me/odd")
    assert found.data.classes is None
    if "pretrained_cfg" in stated:
        assert (found.model.mean, found.model.std, found.model.input_size) == (None, None, None)

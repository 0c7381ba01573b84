"""Check the schema for editors, and the explanation of single settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from metarepair.cli import main
from metarepair.config.load import known_keys, load_config, parse_config
from metarepair.config.training import TrainConfig
from metarepair.console.explain import SCHEMA, explain_key, schema_text
from tasks.errors import ConfigError

FOLDER = Path(__file__).parents[3] / "tune_configs"
SHIPPED = sorted(FOLDER.glob("*.yaml"))
LEAST: dict[str, Any] = {"name": "a", "mining": {"experiences": ["snow"]}}
VALIDATOR = jsonschema.Draft202012Validator(yaml.safe_load(schema_text()))


def test_the_shipped_schema_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--schema"]) == 0
    remedy = f"run: metarepair config --schema > tune_configs/{SCHEMA}"
    assert (FOLDER / SCHEMA).read_text(encoding="utf-8") == capsys.readouterr().out, remedy
    VALIDATOR.check_schema(VALIDATOR.schema)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_names_the_schema_first_and_fits_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# yaml-language-server: $schema={SCHEMA}\n")
    given = load_config(path).model_dump(
        mode="json", exclude_unset=True
    )  # numbers such as 1e-3 as we read them
    assert [error.message for error in VALIDATOR.iter_errors(given)] == []


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        (LEAST, True),
        ({"kit": "shipped:resnet8_cifar10"}, True),
        (LEAST | {"methods": {"of_a_plugin": {"anything": [1]}}}, True),
        (LEAST | {"train": {"episods": 3}}, False),
        (LEAST | {"train": {"episodes": 0}}, False),
        (LEAST | {"device": "gpu"}, False),
        (LEAST | {"sead": 1}, False),
    ],
)
def test_the_schema_accepts_what_the_parser_accepts(values: dict[str, Any], fits: bool) -> None:
    assert VALIDATOR.is_valid(values) is fits


def test_a_setting_is_explained_with_what_it_allows_and_its_default() -> None:
    assert explain_key("train.episodes") == (
        "train.episodes: Episodes of the whole meta-training; at least 1.\n  allowed: integer ≥ 1\n  default: 60"
    )
    assert "\n  allowed: second, first, reptile\n  default: 'second'" in explain_key("train.order")
    assert explain_key("mining.experiences").endswith("default: required")
    assert explain_key("limits.protected_classes.cat").startswith("limits.protected_classes: Classes")


@pytest.mark.parametrize("key", known_keys())
def test_every_setting_is_explained(key: str) -> None:
    first, *rest = explain_key(key).splitlines()
    assert first.startswith(f"{key}: ") or first.startswith(f"{key}.KEY: ")
    assert len(rest) >= 2


def test_a_section_lists_its_keys_with_their_meaning() -> None:
    first, *keys = explain_key("train").splitlines()
    assert first == "train: Meta-training (Algorithm 1, lines 2-12)."
    assert [line.split()[0] for line in keys] == [f"train.{name}" for name in TrainConfig.model_fields]


def test_keys_below_a_name_of_the_user_are_explained() -> None:
    assert explain_key("environments").splitlines()[1].startswith("  environments.KEY.images ")
    assert explain_key("environments.night").splitlines()[1].startswith("  environments.night.images ")
    assert explain_key("environments.night.holdout").startswith("environments.night.holdout: Other images")
    assert explain_key("search.space.inner.rate.choice").startswith("search.space.inner.rate.choice: A list")


@pytest.mark.parametrize(
    "values",
    [{"sead": 1}, {"trian": {"episodes": 1}}, {"train": {"episods": 1}}, {"train": {"shots": 1}}],
)
def test_an_unknown_key_gets_the_hint_that_a_file_with_it_gets(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(LEAST | values, where="here")
    ((section, inner),) = values.items()
    key = ".".join([section, *inner]) if isinstance(inner, dict) else section
    with pytest.raises(ConfigError) as unknown:
        explain_key(key)
    assert "did you mean" in str(unknown.value)
    assert str(refused.value) == f"{unknown.value} (in here)"


def test_a_step_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.episodes is a value"):
        explain_key("train.episodes.x")


def test_the_settings_of_a_method_are_explained() -> None:
    assert "methods.apricot.epochs" in explain_key("methods.apricot")
    assert explain_key("methods.apricot.epochs").startswith("methods.apricot.epochs: Passes")
    with pytest.raises(ConfigError, match=r"did you mean 'methods\.apricot\.epochs'"):
        explain_key("methods.apricot.epoch")
    with pytest.raises(ConfigError, match="no repair method 'apricott'; did you mean 'apricot'"):
        explain_key("methods.apricott")

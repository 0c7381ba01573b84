"""Check that `metarepair init` writes a file that parses, says what is given, and replaces nothing."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from metarepair.cli import main
from metarepair.config.load import load_config, parse_config
from metarepair.config.user_defaults import user_defaults
from metarepair.console.explain import schema_text

GIVEN = ["--clean", "clean", "--model", "my_nets:resnet20", "--weights", "shipped:x"]


def test_a_filled_file_parses_to_what_was_given_and_the_settings_of_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--out", "night.v1.yaml", "--images", "é: night", *GIVEN]) == 0
    written = load_config(tmp_path / "night.v1.yaml")
    fixed = user_defaults(
        {
            "name": "night_v1",
            "targets": ["photographs"],
            "environments": {"photographs": {"images": str(tmp_path / "é: night")}},
            "data": {"name": "images", "root": str(tmp_path / "clean")},
            "model": {"name": "my_nets:resnet20", "weights": "shipped:x"},
            "limits": {"max_clean_drop": 0.005},
        }
    )
    fixed["repair"]["methods"] = list(written.repair.methods)  # `fix` chooses them by its budget,
    fixed["train"]["threads"] = written.train.threads  # and the threads by the machine
    assert written == parse_config(fixed)


def test_placeholders_filled_by_hand_parse_and_fit_the_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    path = tmp_path / "my_repair.yaml"
    text = path.read_text(encoding="utf-8")
    for placeholder in ("path/to/photographs", "path/to/clean_images", "path/to/weights", "module:FACTORY"):
        assert f'"{placeholder}"' in text
        text = text.replace(f'"{placeholder}"', "timm:filled")
    path.write_text(text, encoding="utf-8")
    config = load_config(path)
    assert (
        config.environments["photographs"].images == config.data.root == config.model.weights == "timm:filled"
    )
    jsonschema.validate(yaml.safe_load(text), yaml.safe_load(schema_text()))


@pytest.mark.parametrize("name", ["night.csv", "night.JSONL"])
def test_photographs_in_a_table_are_named_as_one(tmp_path: Path, name: str) -> None:
    out = tmp_path / "a.yaml"
    assert main(["init", "--out", str(out), "--images", name]) == 0
    environment = load_config(out).environments["photographs"]
    assert (environment.images, environment.table) == (None, str(Path(name).absolute()))


def test_an_existing_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.yaml"
    out.write_text("mine", encoding="utf-8")
    assert main(["init", "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == "mine"

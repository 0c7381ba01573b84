"""Check that the public API in docs/api.md exists, typed and documented, and that the version is defined once."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import metarepair
from dotted import look_up

ROOT = Path(__file__).parents[3]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
PACKAGES = (
    "metarepair",
    "metarepair.engine",
    "metarepair.methods",
    "tasks.corruptions",
    "tasks.datasets",
    "tasks.distances",
)


def shown() -> Iterator[tuple[str, Any]]:
    """Yield each object that the page documents: those after `:::`, and the members listed below a module."""
    for match in re.finditer(r"^::: (\S+)\n((?:    .*\n)*)", API, re.MULTILINE):
        name, options = match[1], yaml.safe_load(match[2] or "{}") or {}
        found = look_up(name)
        if not inspect.ismodule(found):
            yield name, found
            continue
        members = options.get("options", {}).get("members") or found.__all__
        yield from ((f"{name}.{member}", getattr(found, member)) for member in members)


SHOWN = {name: found for name, found in shown() if inspect.isfunction(found) or inspect.isclass(found)}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists(package: str) -> None:
    module = importlib.import_module(package)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []  # ruff keeps them sorted
    assert package in API


def test_the_page_shows_functions_and_classes() -> None:
    assert len(SHOWN) >= 20
    assert {"metarepair.repairs.api.repair", "tasks.corruptions.corrupt"} <= SHOWN.keys()


@pytest.mark.parametrize("name", SHOWN)
def test_a_documented_function_describes_its_arguments_and_result(name: str) -> None:
    found = SHOWN[name]
    text = inspect.getdoc(found) or ""
    assert text.partition("\n")[0].strip(), f"{name} has no summary"
    if not inspect.isfunction(found):
        return
    parameters = [p for p in inspect.signature(found).parameters if p not in ("self", "cls")]
    told = text.partition("Args:")[2]
    assert [p for p in parameters if not re.search(rf"^ +\**{p}\b.*:", told, re.MULTILINE)] == []
    if inspect.signature(found).return_annotation not in ("None", None):
        assert re.search(r"^(Returns|Yields):", text, re.MULTILINE), f"{name} does not say what it returns"


@pytest.mark.parametrize("name", [name for name in SHOWN if ">>>" in (SHOWN[name].__doc__ or "")])
def test_an_example_gives_the_output_that_it_shows(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder(recurse=False).find(SHOWN[name], name):
        runner.run(example)
    assert runner.tries > 0
    assert runner.failures == 0, capsys.readouterr().out


def test_the_main_functions_have_examples() -> None:
    main = ("metarepair.repairs.api.repair", "metarepair.engine.task_gradient", "tasks.corruptions.corrupt")
    assert all(">>>" in SHOWN[name].__doc__ for name in (*main, "tasks.distances.frechet_distance"))


def test_all_packages_are_marked_as_typed() -> None:
    assert [p for p in ("tasks", "metarepair", "distributed") if not (ROOT / p / "py.typed").is_file()] == []
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "package-data"
    ]
    assert all("py.typed" in data[p] for p in ("tasks", "metarepair", "distributed"))


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == metarepair.__version__
    releases = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    releases = [release for release in releases if release != "Unreleased"]
    assert releases[0].rstrip(",") == metarepair.__version__


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900

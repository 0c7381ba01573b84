"""Test the lookup of methods: built-in ones, those of other packages, broken plugins, and strict settings."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from torch import nn

import metarepair.methods as package
from metarepair.adaptation.repair_data import Uses
from metarepair.config.load import parse_config
from metarepair.config.section import Section
from metarepair.methods import (
    METHODS,
    all_methods,
    get_method,
    method_settings,
    registry,
)
from metarepair.methods.base import Changes, MethodContext, NoSettings
from metarepair.models.build import DeployedModel
from metarepair.repairs.stage import repair_fairly
from tasks.errors import ConfigError

CONFIG = parse_config({"name": "unit", "device": "cpu", "mining": {"experiences": ["fog"]}})
NAMES = sorted(METHODS)
GREY = (0.5, 0.5, 0.5)
DEPLOYED = DeployedModel(name="one", module=nn.Linear(2, 2), num_classes=2, mean=GREY, std=GREY)
NOTHING: Any = None


def test_there_are_all_methods_and_the_package_names_each() -> None:
    assert set(METHODS) >= {
        "none", "finetune", "bn_adapt", "tent", "metarepair", "apricot", "augmix", "arachne", "sensei",
        "deeprepair", "archrepair", "joint", "joint_finetune", "sgd", "joint_sgd",
        "eata", "sar", "roid", "merged", "merged_sgd",
        "metarepair_sgd",
    }  # fmt: skip
    assert {type(method).__module__.split(".")[2] for method in METHODS.values()} <= set(package.__all__)
    assert package.__all__ == sorted(package.__all__, key=lambda n: (not n.isupper(), n.lower() == n, n))
    assert len({method.words for method in METHODS.values()}) == len(METHODS)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_declares_itself_with_known_terms_and_pickles(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert set(method.uses) <= set(get_args(Uses))
    assert set(method.changes) <= set(get_args(Changes))
    assert method.cost
    assert type(pickle.loads(pickle.dumps(method))) is type(method)
    settings = method_settings(name, {})
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert method.Settings.model_validate(settings.model_dump()) == settings


@pytest.mark.parametrize("name", [n for n in NAMES if METHODS[n].Settings.model_fields])
def test_each_setting_is_described_and_a_misspelt_one_is_refused_with_its_name(name: str) -> None:
    for key, field in METHODS[name].Settings.model_fields.items():
        assert field.description or isinstance(field.default, Section), key
        wrong = f"{key[:-1]}{key[-1]}x"
        with pytest.raises(ConfigError, match=rf"{wrong}.*did you mean '?(methods\.{name}\.)?{key}"):
            method_settings(name, {wrong: 1})


@pytest.mark.parametrize("name", [n for n in NAMES if METHODS[n].Settings is NoSettings])
def test_a_method_without_settings_takes_none(name: str) -> None:
    with pytest.raises(ConfigError, match=f"methods.{name}.rate"):
        method_settings(name, {"rate": 0.1})


def test_an_unknown_method_is_refused_with_near_names() -> None:
    with pytest.raises(ConfigError, match="no repair method 'finetun'; did you mean 'finetune'"):
        get_method("finetun")


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clear the cache of entry points before and after the test."""
    registry._of_other_packages.cache_clear()
    yield
    monkeypatch.undo()
    registry._of_other_packages.cache_clear()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, *, cls: str = "Own") -> None:
    """Write a package with one module and an entry point, as pip installs it."""
    module = f"own_method_{folder.name.replace('-', '_')}"
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[metarepair.methods]\nown = {module}:{cls}\n", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


OWN = """
from pydantic import Field
from metarepair.methods import Method
from metarepair.methods.repaired import repaired_from
from metarepair.config.section import Positive, Section

class OwnSettings(Section):
    times: Positive = Field(2, description="Times.")

class Own(Method):
    name, words, uses, changes, cost, Settings = "own", "our own", (), (), "nothing", OwnSettings

    def repair(self, deployed, data, context):
        context.budget.spend(images=context.settings.times)
        return repaired_from(self.name, deployed.module, context.budget)
"""


def test_a_method_of_another_package_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: None
) -> None:
    assert "own" not in all_methods()
    registry._of_other_packages.cache_clear()
    install(tmp_path, monkeypatch, OWN)
    assert set(all_methods()) == {*METHODS, "own"}
    context = MethodContext(config=CONFIG, seed=0, settings=method_settings("own", {"times": 7}))
    found = get_method("own").repair(DEPLOYED, NOTHING, context)
    assert found.images_seen == 7
    with pytest.raises(ConfigError, match=r"methods\.own\.tims.*did you mean '?(methods\.own\.)?times"):
        method_settings("own", {"tims": 7})


def test_a_method_that_returns_no_repaired_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(get_method("none")), "repair", lambda *_: None)
    monkeypatch.setattr("metarepair.repairs.stage.cut_to_uses", lambda *_: NOTHING)
    with pytest.raises(ConfigError, match="none returned a NoneType; `repair` returns a RepairedModel"):
        repair_fairly(get_method("none"), DEPLOYED, NOTHING, MethodContext(config=CONFIG, seed=0))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_package_at_all", "cannot be loaded .ModuleNotFoundError: No module named"),
        ("raise RuntimeError('half installed')", "cannot be loaded .RuntimeError: half installed"),
        ("raise SystemExit(3)", "cannot be loaded .SystemExit: 3"),
        ("Another = 1", "cannot be loaded .AttributeError"),
        (
            OWN.replace("def repair", "def __init__(self):\n        1 / 0\n\n    def repair"),
            "cannot be called .*ZeroDiv",
        ),
        ("class Own: pass", "is not a subclass of metarepair.methods.Method"),
        ("Own = 'not a class'", "is not a subclass of metarepair.methods.Method"),
        (OWN.replace('"own", "our own"', '"tent", "our own"'), "takes the name 'tent' of another method"),
        (OWN.replace("(), ()", '("failurs",), ()'), "'failurs'; did you mean 'failures'"),
        (OWN.replace("def repair", "def mend"), "has no 'repair'. A method declares name, words"),
        (OWN.replace("cost, Settings", "price, Settings"), "has no 'cost'. A method declares name, words"),
    ],
)
def test_a_broken_plugin_is_named_with_the_remedy(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: None
) -> None:
    install(tmp_path, monkeypatch, code)
    with pytest.raises(ConfigError, match=rf"the entry point 'own' = .*{said}"):
        all_methods()
    assert get_method("tent") is METHODS["tent"]  # the built-in methods do not depend on it

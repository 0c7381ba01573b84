"""Test import paths of factories: the valid ones, and the errors for all others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from metarepair.models.build import build_model
from metarepair.models.classes import check_class_names, stated_classes
from metarepair.models.factory import build_from_factory, is_import_path
from tasks.errors import ConfigError, WeightsError

MODULE = """\
import torch
from torch import nn

NUMBER = 3
NET = nn.Linear(2, 2)

def plain():
    return nn.Linear(2, 7)

def sized(num_classes):
    return nn.Linear(2, num_classes)

def loose(width=2, **options):
    return nn.Linear(width, options["num_classes"])

class Net(nn.Linear):
    def __init__(self, num_classes=3):
        super().__init__(2, num_classes)

class Inside:
    make = staticmethod(sized)

def needs(width):
    return nn.Linear(width, 2)

def breaks():
    raise RuntimeError("no luck")

def leaves():
    raise SystemExit(3)

def nothing():
    pass

def empty():
    return nn.Identity()

def lazy():
    return nn.LazyLinear(3)

def meta():
    return nn.Linear(2, 3, device="meta")

def meta_buffer():
    net = nn.Linear(2, 3)
    net.register_buffer("mean", torch.zeros(3, device="meta"))
    return net
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module `own_nets` that is not on sys.path yet."""
    (tmp_path / "own_nets.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "broken_nets.py").write_text("import own_nets\n1 / 0\n", encoding="utf-8")
    (tmp_path / "needy_nets.py").write_text("import absent_package\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in ("own_nets", "broken_nets", "needy_nets"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("factory", "classes"), [("plain", 7), ("sized", 5), ("loose", 5), ("Net", 5), ("Inside.make", 5)]
)
def test_a_factory_of_the_current_folder_is_called_with_num_classes_where_it_takes_it(
    own: Path, factory: str, classes: int
) -> None:
    module = build_from_factory(f"own_nets:{factory}", 5)
    assert isinstance(module, nn.Linear)
    assert module.out_features == classes


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("own_nets.py:sized", r"has no module 'own_nets\.py'|there is no module"),
        ("./own_nets.py:sized", r"no import path|neither a timm name.*own_nets:sized"),
        ("nets/own.py:", r"neither a timm name nor an import path.*as in nets\.own:factory"),
        ("own_nets:", "neither a timm name nor an import path"),
        (":sized", "neither a timm name nor an import path"),
        ("absent_nets:sized", "there is no module 'absent_nets'.*PYTHONPATH.*working_dir"),
        ("own_nets.deeper:sized", "there is no module|is not a package"),
        ("needy_nets:sized", "needy_nets imports 'absent_package', which is not installed"),
        ("broken_nets:sized", "importing broken_nets raised ZeroDivisionError"),
        ("own_nets:sizde", "own_nets has no 'sizde'; did you mean 'sized'"),
        ("own_nets:NUMBER", "is int, not a function"),
        ("own_nets:NET", "is Linear, not a function"),
        ("own_nets:needs", r"needs\(\) raised TypeError.*'width'.*defaults"),
        ("own_nets:breaks", "raised RuntimeError: no luck"),
        ("own_nets:leaves", "raised SystemExit: 3"),
        ("own_nets:nothing", "returned NoneType, not a torch.nn.Module"),
        ("own_nets:lazy", "the parameter weight has no shape yet"),
        ("own_nets:meta", "the parameter weight has no values"),
        ("own_nets:meta_buffer", "the buffer mean has no values"),
        ("own_nets:empty", "without parameters"),
    ],
)
def test_a_factory_that_cannot_be_used_is_refused_by_name(own: Path, path: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_from_factory(path, 5)


def test_a_timm_name_works_with_and_without_its_prefix() -> None:
    assert not is_import_path("resnet8_cifar")
    assert not is_import_path("timm:resnet8_cifar")
    assert not any(map(is_import_path, ("hf-hub:me/net", "hf:me/net", "torchvision:resnet18")))
    assert is_import_path("torchvision.models:resnet18")
    plain, prefixed = build_model("resnet8_cifar", 10), build_model("timm:resnet8_cifar", 10)
    assert plain.state_dict().keys() == prefixed.state_dict().keys()


def test_class_names_may_agree_differ_or_be_in_another_order() -> None:
    ours = ("cat", "dog", "polar_bear")
    assert check_class_names(("Cat", "dog", "polar bear"), ours, where="net.pt") == ()
    (note,) = check_class_names(("cat", "hound", "polar bear"), ours, where="net.pt")
    assert "names 1 of its classes differently" in note
    with pytest.raises(WeightsError, match="another order: its class 0 is 'dog', the data set's is 'cat'"):
        check_class_names(("dog", "cat", "polar_bear"), ours, where="net.pt")
    with pytest.raises(WeightsError, match=r"names 2 classes \(cat, dog\), the data set has 3"):
        check_class_names(("cat", "dog"), ours, where="net.pt")


def test_a_module_may_state_its_classes() -> None:
    module = nn.Linear(2, 2)
    assert stated_classes(module) is None
    module.classes = ["cat", "dog"]  # type: ignore[assignment]  # as torchvision-style checkpoints do
    assert stated_classes(module) == ("cat", "dog")

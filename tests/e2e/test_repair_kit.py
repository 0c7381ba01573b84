"""Check `RepairKit`: a kit of a module that no import path names, made, opened and used from Python."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from kits import KIT
from metarepair import RepairKit, save_images
from metarepair.models.build import load_deployed
from metarepair.models.wrappers import copied
from tasks.datasets import dataset_info, load_dataset
from tasks.environments import corrupted_images
from tasks.errors import ConfigError, DataError, WeightsError
from tasks.storage.manifest import file_hash

INFO = dataset_info("cifar10_sample")
SETTINGS = {key: KIT[key] for key in ("mining", "task", "inner", "train", "joint")}
FEW: dict[str, Any] = {"repair": {"methods": ["joint", "metarepair"], "episodes": 1, "tasks": 1}}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """The shipped ResNet-8, as a module."""
    return load_deployed("resnet8_cifar", "shipped:resnet8_cifar10", INFO).module


@pytest.fixture(scope="module")
def kit(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> RepairKit:
    """A kit of it; tests must not write to it."""
    train = load_dataset("cifar10_sample", "train").head(300)
    return RepairKit.build(
        net,
        clean=(train.images_NHWC, train.labels_N),
        mean=INFO.mean,
        std=INFO.std,
        classes=INFO.classes,
        out=tmp_path_factory.mktemp("kits") / "python",
        settings=SETTINGS,
    )


@pytest.fixture(scope="module")
def photographs() -> tuple[np.ndarray, np.ndarray]:
    """Noisy images with their labels, right and wrong ones."""
    test = load_dataset("cifar10_sample", "test").head(200)
    images = corrupted_images(test, np.arange(200), corruption="gaussian_noise", severity=4, seed=1)
    return images, test.labels_N


def test_a_repair_takes_what_is_best_inside_the_limits(
    kit: RepairKit, net: nn.Module, photographs: Any, tmp_path: Path
) -> None:
    before = copied(net).state_dict()
    fixed = kit.repair(photographs, max_clean_drop=0.9, settings=FEW, out=tmp_path / "run")
    assert not fixed.kept
    assert fixed.method in ("joint", "metarepair")
    assert fixed.words.startswith("Take the repaired model")
    assert 0 < fixed.before < 1
    path = fixed.save(tmp_path / "fixed" / "model.safetensors")
    held = load_file(path)
    card = json.loads((path.parent / "card.json").read_text(encoding="utf-8"))
    assert card["verdict"].startswith("Take the repaired model")
    assert card["weights"]["blake2b_128"] == file_hash(path)
    readme = (path.parent / "README.md").read_text(encoding="utf-8")
    assert "# ResNet8 repaired for photographs" in readme
    assert "module.load_state_dict(load_file(" in readme
    assert all(value.equal(held[name]) for name, value in fixed.module.state_dict().items())
    assert any(not value.equal(held[name]) for name, value in before.items())
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert "joint training" in fixed.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "run/repaired/photographs/result.json").is_file()
    with pytest.raises(ConfigError, match=r"does not end in \.html"):
        fixed.report(tmp_path / "report.txt")


def test_what_a_kit_repaired_is_exported_without_its_run(
    kit: RepairKit, photographs: Any, tmp_path: Path
) -> None:
    fixed = kit.repair(photographs, max_clean_drop=0.9, settings=FEW)
    hub = fixed.export(tmp_path / "hub", format="hf")
    loaded = timm.create_model(f"local-dir:{hub}", pretrained=True).eval()
    x_BCHW = torch.randn(3, 3, 32, 32)
    assert torch.allclose(loaded(x_BCHW), fixed.module(x_BCHW), atol=1e-5)
    assert tuple(loaded.pretrained_cfg["label_names"]) == INFO.classes
    card = json.loads((hub / "card.json").read_text(encoding="utf-8"))
    assert card["results"].keys() == {"clean", "environment"}
    assert str(fixed.folder) not in json.dumps(card)


def test_a_kit_of_a_table_is_the_kit_of_arrays_of_its_images(
    kit: RepairKit, net: nn.Module, tmp_path: Path
) -> None:
    train = load_dataset("cifar10_sample", "train").head(300)
    names = [INFO.classes[label] for label in train.labels_N]
    table = save_images((train.images_NHWC, names), tmp_path / "clean.parquet")
    found = RepairKit.build(
        net, clean=table, mean=INFO.mean, std=INFO.std, out=tmp_path / "kit", settings=SETTINGS
    )
    assert found.classes == INFO.classes  # the sorted names
    for file in ("joint/model.safetensors", "meta/shared/start.safetensors"):
        one, other = (load_file(Path(k.folder, file)) for k in (kit, found))
        assert all(value.equal(other[name]) for name, value in one.items())


def test_photographs_of_a_folder_are_repaired_as_arrays_of_them(
    kit: RepairKit, photographs: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    images, labels = photographs
    for number in np.argsort(labels, kind="stable"):  # as class folders are listed
        path = tmp_path / "night" / INFO.classes[labels[number]] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number]).save(path)
    listed = np.argsort(labels, kind="stable")
    given: dict[str, Any] = {"max_clean_drop": 0.9, "settings": FEW}
    found = kit.repair(str(tmp_path / "night"), **given)
    arrays = kit.repair((images[listed], labels[listed]), **given)
    assert (found.method, found.before, found.after) == (arrays.method, arrays.before, arrays.after)
    state = arrays.module.state_dict()
    assert all(value.equal(state[name]) for name, value in found.module.state_dict().items())
    with pytest.raises(DataError, match=r"holdout .*nowhere does not exist"):
        kit.repair(tmp_path / "night", holdout="nowhere")
    with pytest.raises(ConfigError, match=r"photographs='s3://bucket/night'.*read from a local folder"):
        kit.repair("s3://bucket/night")
    (tmp_path / "night" / "cat").rename(tmp_path / "night" / "cats")
    with pytest.raises(DataError, match=r"has the class folder 'cats'.*did you mean 'cat'"):
        kit.repair(tmp_path / "night")


def test_outside_the_limits_the_given_weights_are_kept(
    kit: RepairKit, net: nn.Module, photographs: Any
) -> None:
    fixed = kit.repair(photographs, min_gain=0.99, settings=FEW)
    assert (fixed.kept, fixed.method) == (True, "none")
    assert fixed.words.startswith("Keep your model")
    assert all(value.equal(net.state_dict()[name]) for name, value in fixed.module.state_dict().items())
    folder = fixed.folder
    assert folder.is_dir()
    del fixed
    gc.collect()
    assert not folder.exists()


def test_it_is_opened_with_its_module_alone(kit: RepairKit, net: nn.Module) -> None:
    again = RepairKit.load(kit.folder, model=net)
    assert again.experiences == ("shot_noise", "snow")
    assert again.classes == INFO.classes
    assert RepairKit.load(kit.folder, model="resnet8_cifar").classes == again.classes
    with pytest.raises(ConfigError, match="which the project does not have: give it"):
        RepairKit.load(kit.folder)
    other = copied(net)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(WeightsError, match="has other weights than the DNN"):
        RepairKit.load(kit.folder, model=other)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"clean": (np.zeros((4, 3, 32, 32), np.float32), np.zeros(4, int))}, DataError, "normalised floats"),
        ({"clean": "nowhere"}, DataError, "clean .*nowhere does not exist"),
        ({"classes": ["a", "b"]}, ConfigError, "classes has 2 names, and the DNN has 10 outputs"),
        ({"out": "s3://bucket/kit"}, ConfigError, "a kit is built in a local folder"),
        ({"settings": {"targets": ["fog"]}}, ConfigError, "has no targets"),
        ({"model": "resnet8_cifar"}, ConfigError, r"give a torch\.nn\.Module"),
    ],
)
def test_what_a_kit_cannot_be_made_of_is_refused(
    net: nn.Module, tmp_path: Path, changed: dict[str, Any], error: type[Exception], said: str
) -> None:
    images = np.random.default_rng(0).integers(256, size=(40, 32, 32, 3), dtype=np.uint8)
    given: dict[str, Any] = {
        "model": net,
        "clean": (images, np.arange(40) % 10),
        "mean": INFO.mean,
        "std": INFO.std,
        "out": tmp_path / "kit",
    } | changed
    if error is DataError and "floats" in said:
        given |= {"mean": None, "std": None}
    with pytest.raises(error, match=said):
        RepairKit.build(given.pop("model"), **given)


def test_it_imports_no_ray() -> None:
    code = "import sys; from metarepair import RepairKit; assert 'ray' not in sys.modules, 'Ray is imported'"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""torchvision's weights by name: in torch hub's cache, checked by the hash in their names, or refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torchvision.models import ResNet18_Weights, get_model

from metarepair.config.load import parse_config
from metarepair.models import build_model, load_deployed
from metarepair.weights import resolve_weights, torchvision_files
from metarepair.weights.torchvision_files import default_weights
from tasks.datasets import DatasetInfo
from tasks.datasets.source import IMAGENET_MEAN, IMAGENET_STD
from tasks.errors import ConfigError, WeightsError

NAME = "torchvision:ResNet18_Weights.IMAGENET1K_V1"
LEAST = {"name": "a", "mining": {"experiences": ["snow"]}}


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of torch hub's checkpoints, and no network."""

    def fail(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torchvision_files, "download_url_to_file", fail)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def published(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights in the cache whose name has their hash, which torchvision's entry names."""
    torch.manual_seed(0)
    made = checkpoints / "made.pth"
    torch.save(get_model("resnet18", weights=None).state_dict(), made)
    path = made.rename(checkpoints / f"resnet18-{hashlib.sha256(made.read_bytes()).hexdigest()[:8]}.pth")
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", f"https://example.org/{path.name}")
    return path


def imagenet() -> DatasetInfo:
    names = tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
    return DatasetInfo(names, 224, "imagenet", mean=(0.5,) * 3, std=(0.5,) * 3)


def test_published_weights_load_with_torchvisions_preparation(published: Path) -> None:
    config = parse_config(LEAST | {"model": {"name": "torchvision:resnet18"}})
    assert config.model.weights == NAME == default_weights("torchvision:resnet18")
    assert (config.model.mean, config.model.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert config.model.input_size == 224
    model = config.model
    deployed = load_deployed(
        model.name, model.weights, imagenet(), mean=model.mean, std=model.std, input_size=model.input_size
    )
    before = torch.load(published, weights_only=True)
    assert torch.equal(deployed.module.state_dict()["conv1.weight"], before["conv1.weight"])
    assert any("input_size 224 as the hub states" in note for note in deployed.notes)


def test_classes_in_another_order_are_refused(published: Path) -> None:
    names = imagenet().classes
    other = DatasetInfo((*names[1:], names[0]), 224, "imagenet", mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(WeightsError, match="in another order"):
        load_deployed("torchvision:resnet18", NAME, other)


def test_another_number_of_classes_is_refused_with_both(published: Path) -> None:
    few = DatasetInfo(("cat", "dog"), 224, "imagenet", mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(WeightsError, match=r"has 1000 classes .*the data set has 2"):
        load_deployed("torchvision:resnet18", NAME, few)


def test_missing_weights_name_the_address_the_folder_and_the_variable(checkpoints: Path) -> None:
    with pytest.raises(WeightsError) as error:
        resolve_weights(NAME)
    said = str(error.value)
    assert "wget https://download.pytorch.org/models/resnet18-f37072fd.pth" in said
    assert str(checkpoints) in said
    assert "TORCH_HOME" in said


def test_weights_with_other_bytes_than_their_name_says_are_refused(published: Path) -> None:
    with published.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(WeightsError, match="is damaged"):
        resolve_weights(NAME)


@pytest.mark.parametrize("name", ["ResNet18_Weights.IMAGENET1K", "os.path", "ResNet18_Weights", "../x", ""])
def test_unknown_weights_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"torchvision:ResNet18_Weights\.IMAGENET1K_V1"):
        resolve_weights(f"torchvision:{name}")


def test_an_unknown_model_is_refused_with_near_names() -> None:
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        build_model("torchvision:resnet_18", 10)

"""Test stems for small images, input sizes and normalisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models import DenseNet
from torch import nn

from metarepair.config.load import parse_config
from metarepair.config.run import ModelConfig
from metarepair.data.workspace import load_surroundings
from metarepair.meta_training.meta_train import training_settings
from metarepair.models.build import DeployedModel, build_model, load_deployed, save_weights
from metarepair.models.preprocessing import mean_and_std
from metarepair.models.stems import Stem, use_small_stem
from metarepair.models.van import Van
from tasks.datasets import dataset_info
from tasks.errors import ConfigError, WeightsError
from tasks.storage.settings import changes, difference

INFO = dataset_info("cifar10")
# The module whose output is the input of the first block, or the last module of a stage.
STAGES = {
    "densenet": ["features.pool0", *(f"features.denseblock{i}" for i in (1, 2, 3, 4))],
    "resnet": ["maxpool", *(f"layer{i}" for i in (1, 2, 3, 4))],
    "convnext": ["stem", *(f"stages.{i}" for i in range(4))],
    "van": ["patch_embed1", *(f"block{i}" for i in (1, 2, 3, 4))],
}
SIZES = {"imagenet": [8, 8, 4, 2, 1], "cifar": [32, 32, 16, 8, 4]}


def narrow(family: str, num_classes: int = 3) -> Any:
    torch.manual_seed(0)
    if family == "densenet":
        return DenseNet(growth_rate=4, block_config=(1, 1, 1, 1), num_classes=num_classes)
    if family == "resnet":
        return timm.create_model(
            "resnet18", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), num_classes=num_classes
        )
    if family == "convnext":
        return timm.create_model(
            "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=num_classes
        )
    return Van(widths=(4, 4, 4, 4), depths=(1, 1, 1, 1), num_classes=num_classes)


def map_sizes(module: nn.Module, names: list[str], size: int = 32) -> list[int]:
    """Return the side, in pixels, of the output maps of the named layers."""
    found: dict[str, int] = {}

    def note(name: str) -> Any:
        return lambda _, __, out: found.update({name: out.shape[-1]})

    for name in names:
        module.get_submodule(name).register_forward_hook(note(name))
    with torch.inference_mode():
        module.eval()(torch.zeros(1, 3, size, size))
    return [found[name] for name in names]


@pytest.mark.parametrize("family", STAGES)
def test_the_small_stem_keeps_every_pixel_for_the_first_block(family: str) -> None:
    assert map_sizes(narrow(family), STAGES[family]) == SIZES["imagenet"]
    small = narrow(family)
    use_small_stem(small, family)
    assert map_sizes(small, STAGES[family]) == SIZES["cifar"]


@pytest.mark.parametrize("family", STAGES)
def test_the_small_stem_is_one_new_convolution_and_all_else_stays(family: str) -> None:
    before, after = narrow(family), narrow(family)
    use_small_stem(after, family)
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    (changed,) = [k for k in old if old[k].shape != new[k].shape]
    assert new[changed].shape[2:] == (3, 3)
    assert 0 < float(new[changed].std()) < 1
    others = [k for k in old if k.rpartition(".")[0] != changed.rpartition(".")[0]]
    assert len(old) - len(others) <= 2  # its weight, and its bias if it has one
    assert all(torch.equal(old[k], new[k]) for k in others)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_densenet121_at_32_pixels_has_the_maps_that_the_documents_state(stem: Stem) -> None:
    assert map_sizes(build_model("densenet121", 10, stem=stem), STAGES["densenet"]) == SIZES[stem]


@pytest.mark.parametrize("name", ["resnet8_cifar", "mobilenetv3_small_050", "resnet18d", "densenetblur121d"])
def test_a_stem_that_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"model.stem=cifar is not known for {name}"):
        build_model(name, 10, stem="cifar")


def test_weights_of_the_other_stem_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "small.safetensors"
    save_weights(file, build_model("van_b0", 10, stem="cifar").state_dict(), {})
    assert load_deployed("van_b0", str(file), INFO, stem="cifar").module.training is False
    with pytest.raises(WeightsError, match=r"1 of another shape.*patch_embed1\.proj\.weight"):
        load_deployed("van_b0", str(file), INFO)


def deployed(**changes: Any) -> DeployedModel:
    settings = {"name": "a", "module": nn.Conv2d(3, 2, 1).double(), "num_classes": 2}
    return DeployedModel(**settings | {"mean": INFO.mean, "std": INFO.std} | changes)


def pixels(*shape: int) -> Any:
    """Smooth images, whose content survives a resize."""
    coarse = torch.rand(shape[0], 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, shape[1:], mode="bicubic").clamp(0, 1)
    return (255 * smooth).round().byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(("size", "input_size"), [((32, 32), 64), ((64, 64), 32), ((48, 32), 40)])
def test_images_are_resized_as_pillow_does(size: tuple[int, int], input_size: int) -> None:
    images = pixels(2, *size)
    x = deployed(input_size=input_size).normalise(images)
    expected = [
        np.asarray(Image.fromarray(image).resize((input_size, input_size), Image.Resampling.BILINEAR))
        for image in images
    ]
    truth = deployed().normalise(np.stack(expected))
    assert x.shape == (2, 3, input_size, input_size)
    # Pillow rounds to a grey level after each axis.
    assert float((x - truth).abs().max()) < 1.5 / 255 / min(INFO.std)


def test_without_an_input_size_or_at_the_images_own_nothing_is_resized() -> None:
    images = pixels(2, 32, 32)
    native = deployed().normalise(images)
    assert torch.equal(deployed(input_size=32).normalise(images), native)
    by_hand = (torch.from_numpy(images).double() / 255 - torch.tensor(INFO.mean)) / torch.tensor(INFO.std)
    torch.testing.assert_close(native, by_hand.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-6)


def test_normalisation_is_the_data_sets_or_the_checkpoints(tmp_path: Path) -> None:
    file = tmp_path / "van.safetensors"
    save_weights(file, build_model("van_b0", 10).state_dict(), {})
    assert load_deployed("van_b0", str(file), INFO).mean == INFO.mean
    found = load_deployed("van_b0", str(file), INFO, normalisation="checkpoint", input_size=64)
    assert found.mean == found.std == (0.5, 0.5, 0.5)
    assert found.input_size == 64
    with torch.device("meta"):
        densenet = timm.create_model("densenet121")
    assert mean_and_std(densenet, "densenet121", INFO, "checkpoint")[0] == (0.485, 0.456, 0.406)


def test_a_model_that_states_no_normalisation_has_the_data_sets_alone() -> None:
    module = build_model("resnet8_cifar", 10)
    assert mean_and_std(module, "resnet8_cifar", INFO, "dataset") == (INFO.mean, INFO.std)
    with pytest.raises(ConfigError, match="resnet8_cifar states no mean and std"):
        mean_and_std(module, "resnet8_cifar", INFO, "checkpoint")


def test_a_run_takes_the_settings_and_depends_on_them(tmp_path: Path) -> None:
    file = tmp_path / "van.safetensors"
    save_weights(file, build_model("van_b0", 10, stem="cifar").state_dict(), {})
    model = {"name": "van_b0", "weights": str(file), "stem": "cifar", "input_size": 48}
    values = {"name": "a", "device": "cpu", "mining": {"experiences": ["snow"]}}
    config = parse_config(values | {"model": model | {"normalisation": "checkpoint"}})
    found = load_surroundings(config).deployed
    assert map_sizes(found.module, STAGES["van"]) == SIZES["cifar"]
    assert (found.input_size, found.mean) == (48, (0.5, 0.5, 0.5))
    other = parse_config(values | {"model": model})
    lines = difference(training_settings(config), training_settings(other))
    assert lines == ["model.normalisation: checkpoint -> dataset"]


def test_runs_recorded_before_stems_have_the_settings_of_today() -> None:
    before = {"name": "resnet8_cifar", "weights": "shipped:resnet8_cifar10"}
    assert changes(before, ModelConfig().settings()) == []
    changed = ModelConfig(name="van_b0", weights="w", stem="cifar", input_size=64, normalisation="checkpoint")
    values = changed.settings()
    assert values == {
        "name": "van_b0",
        "weights": "w",
        "stem": "cifar",
        "input_size": 64,
        "normalisation": "checkpoint",
        "entry": None,
        "mean": None,
        "std": None,
    }
    assert ModelConfig(**values) == changed
    lacking = changes({"name": "van_b0", "weights": "w"}, values)
    assert lacking == [
        "input_size: None -> 64",
        "normalisation: dataset -> checkpoint",
        "stem: imagenet -> cifar",
    ]

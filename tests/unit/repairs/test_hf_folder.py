"""Test folders in Hugging Face's form: timm loads them with the same logits, and a card says how to load the others."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from metarepair.console.export import export
from metarepair.models import build_model, load_deployed
from metarepair.models.build import DeployedModel
from metarepair.repairs.hf_folder import FILES, check_folder, export_folder
from metarepair.reports.card import unjudged_card, write_card
from metarepair.weights import SHIPPED
from small import Small
from tasks.datasets import dataset_info
from tasks.errors import ConfigError, DataError

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
CLASSES = ("cat", "dog", "</script>", "=x", "e")


def images(size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(6, size, size, 3)).astype(np.uint8)


def deployed(name: str, module: nn.Module, *, input_size: int | None = None) -> DeployedModel:
    return DeployedModel(
        name=name,
        module=module.eval(),
        num_classes=len(CLASSES),
        mean=MEAN,
        std=STD,
        input_size=input_size,
    )


def built(name: str, **options: Any) -> DeployedModel:
    torch.manual_seed(0)
    return deployed(name, build_model(name, len(CLASSES), **options))


def card(dnn: DeployedModel, **model: Any) -> dict[str, Any]:
    return unjudged_card(
        model={"name": dnn.name, "stem": "imagenet"} | model,
        classes=CLASSES,
        preprocessing=dnn.preprocessing,
        verdict="Nobody judged it.",
    )


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "resnet8_cifar", "convnext_cifar", "van_b0"])
def test_timm_loads_an_exported_folder_with_the_same_logits(tmp_path: Path, name: str) -> None:
    dnn = built(name)
    found = export_folder(dnn, images(), tmp_path / "hub", card(dnn))
    assert {path.name for path in found.path.iterdir()} == {*FILES} - {"architecture.json"}
    loaded = timm.create_model(f"local-dir:{found.path}", pretrained=True).eval()
    assert torch.allclose(loaded(dnn.normalise(images())), dnn.module(dnn.normalise(images())), atol=1e-5)
    told = timm.data.resolve_model_data_config(loaded)
    assert (tuple(told["mean"]), tuple(told["std"])) == (MEAN, STD)
    assert tuple(told["input_size"]) == (3, 32, 32)
    assert tuple(loaded.pretrained_cfg["label_names"]) == CLASSES
    own = name in ("resnet8_cifar", "convnext_cifar", "van_b0")
    readme = (found.path / "README.md").read_text(encoding="utf-8")
    assert ("import metarepair.models" in readme) == own
    assert f"library_name: {'metarepair' if own else 'timm'}" in readme
    assert "the same classes on 6 images" in found.words


def test_timms_own_transform_feeds_the_model_as_metarepair_does(tmp_path: Path) -> None:
    dnn = built("resnet8_cifar")
    export_folder(dnn, images(), tmp_path / "hub", card(dnn))
    loaded = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
    x_BCHW = torch.stack([transform(Image.fromarray(image)) for image in images()])
    assert torch.allclose(x_BCHW, dnn.normalise(images()), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_cifar"])
def test_what_was_loaded_from_a_folder_is_exported_again(tmp_path: Path, name: str) -> None:
    dnn = built(name)
    first = export_folder(dnn, images(), tmp_path / "first", card(dnn)).path
    loaded = deployed(name, timm.create_model(f"local-dir:{first}", pretrained=True))
    second = export_folder(loaded, images(), tmp_path / "second", card(dnn))
    assert second.comparison is not None
    assert (second.path / "config.json").read_bytes() == (first / "config.json").read_bytes()


def test_what_timm_says_of_its_own_weights_is_left_out(tmp_path: Path) -> None:
    dnn = built("resnet10t")
    assert {"license", "tag", "test_input_size"} & dnn.module.pretrained_cfg.keys()  # type: ignore[operator]
    export_folder(dnn, images(), tmp_path / "hub", card(dnn))
    told = json.loads((tmp_path / "hub/config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    assert not {"license", "tag", "test_input_size", "origin_url", "url", "file"} & told.keys()


def test_a_transformer_of_a_fixed_size_states_the_size_that_images_are_resized_to(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", num_classes=len(CLASSES), img_size=64, depth=1)
    dnn = deployed("vit_tiny_patch16_224", module, input_size=64)
    found = export_folder(dnn, images(), tmp_path / "hub", card(dnn))
    assert found.comparison is not None
    loaded = timm.create_model(f"local-dir:{found.path}", pretrained=True).eval()
    assert tuple(loaded.pretrained_cfg["input_size"]) == (3, 64, 64)
    assert torch.allclose(loaded(dnn.normalise(images())), dnn.module(dnn.normalise(images())), atol=1e-5)


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]) -> dict[str, Any]:
    """Run the code of the card in its folder, as it says."""
    code = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    exec(code, found)
    return found


@pytest.mark.parametrize("name", ["resnet10t", "convnext_cifar"])
def test_the_code_on_the_card_classifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    dnn = built(name)
    export_folder(dnn, images(), tmp_path / "hub", card(dnn))
    photos = [Image.fromarray(image) for image in images()]
    found = run_card(tmp_path / "hub", monkeypatch, {"images": photos})
    assert torch.equal(found["labels"], dnn.logits(images()).argmax(1))


@pytest.mark.parametrize("name", ["convnext_cifar", "van_b0"])
def test_a_small_stem_is_loaded_as_the_card_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    dnn = built(name, stem="cifar")
    found = export_folder(dnn, images(), tmp_path / "hub", card(dnn, stem="cifar"))
    assert "timm alone does not load this DNN (it raised RuntimeError" in found.words
    config = json.loads((tmp_path / "hub/config.json").read_text(encoding="utf-8"))
    assert "architecture" not in config
    assert config["label_names"] == list(CLASSES)
    assert config["pretrained_cfg"]["mean"] == list(MEAN)
    readme = (tmp_path / "hub/README.md").read_text(encoding="utf-8")
    assert "timm alone cannot build it." in readme
    ran = run_card(tmp_path / "hub", monkeypatch, {"images": images()})
    assert torch.equal(ran["labels"], dnn.logits(images()).argmax(1))


def test_a_dnn_of_a_factory_is_loaded_as_the_card_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    dnn = replace(deployed("small:Small", Small()), num_classes=10)
    told = card(dnn) | {"classes": list("0123456789")}
    found = export_folder(dnn, images(16), tmp_path / "hub", told)
    assert "it is not one of timm's models" in found.words
    ran = run_card(tmp_path / "hub", monkeypatch, {"images": images(16)})
    assert torch.equal(ran["labels"], dnn.logits(images(16)).argmax(1))


def test_a_changed_module_of_timm_is_not_passed_off_as_timms(tmp_path: Path) -> None:
    """It has the names and shapes of timm's, and other activations."""
    dnn = built("resnet10t")
    dnn.module.layer1[0].act2 = nn.Tanh()  # type: ignore[index, union-attr]
    found = export_folder(dnn, images(), tmp_path / "hub", card(dnn))
    assert "what timm builds gives another class for" in found.words
    assert "architecture" not in json.loads((tmp_path / "hub/config.json").read_text(encoding="utf-8"))


def test_a_folder_with_other_files_is_refused_and_an_earlier_export_replaced(tmp_path: Path) -> None:
    dnn, hub = built("resnet8_cifar"), tmp_path / "hub"
    hub.mkdir()
    export_folder(dnn, images(), hub, card(dnn))
    before = load_file(hub / "model.safetensors")["fc.bias"]
    with torch.no_grad():
        dnn.module.fc.bias += 1  # type: ignore[operator, union-attr]
    export_folder(dnn, images(), hub, card(dnn))
    assert torch.allclose(load_file(hub / "model.safetensors")["fc.bias"], before + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]
    (hub / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="other files than those of an earlier export"):
        export_folder(dnn, images(), hub, card(dnn))
    assert (hub / "notes.txt").read_text(encoding="utf-8") == "mine"
    shutil.copytree(hub, tmp_path / "others", ignore=lambda *_: ["notes.txt", "config.json"])
    with pytest.raises(ConfigError, match="other files than those of an earlier export"):
        check_folder(tmp_path / "others")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="is a file, and this format writes a folder"):
        check_folder(tmp_path / "hub")


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("metarepair.repairs.hf_folder.write_card", full)
    dnn = built("resnet8_cifar")
    with pytest.raises(OSError, match="No space left"):
        export_folder(dnn, images(), tmp_path / "hub", card(dnn))
    assert list(tmp_path.iterdir()) == []


def config_of(folder: Path) -> Path:
    """Settings for the shipped ResNet-8, with its weights in `folder`."""
    weights = folder / "mine.safetensors"
    weights.write_bytes((SHIPPED / "resnet8_cifar10.safetensors").read_bytes())
    config = {
        "name": "unit",
        "mining": {"experiences": ["fog"]},
        "model": {"weights": str(weights)},
        "data": {"max_test_images": 3},
    }
    (folder / "unit.yaml").write_text(json.dumps(config), encoding="utf-8")
    return folder / "unit.yaml"


def test_weights_without_a_run_get_a_card_that_says_that_nothing_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config_of(tmp_path)
    hub = tmp_path / "hub"
    export(str(tmp_path / "mine.safetensors"), kind="hf", out=str(hub), config_file=settings)
    assert "same classes on 3 images" in caplog.messages[-1]
    readme = (hub / "README.md").read_text(encoding="utf-8")
    assert "These weights came without a card" in readme
    assert all(
        str(tmp_path).encode() not in path.read_bytes() for path in hub.iterdir()
    )  # no path of this machine
    deployed = load_deployed("resnet8_cifar", "shipped:resnet8_cifar10", dataset_info("cifar10_sample"))
    loaded = timm.create_model(f"local-dir:{hub}", pretrained=True).eval()
    assert torch.allclose(loaded(deployed.normalise(images())), deployed.module(deployed.normalise(images())))


def test_the_card_beside_weights_that_were_handed_over_goes_with_them(tmp_path: Path) -> None:
    settings, weights = config_of(tmp_path), tmp_path / "mine.safetensors"
    own = unjudged_card(
        model={"name": "resnet8_cifar", "stem": "imagenet"},
        classes=dataset_info("cifar10_sample").classes,
        preprocessing={"mean": [0, 0, 0], "std": [1, 1, 1], "input_size": None},
        verdict="Take the repaired model.",
    )
    write_card(own, weights)
    export(str(weights), kind="hf", out=str(tmp_path / "hub"), config_file=settings)
    told = json.loads((tmp_path / "hub/card.json").read_text(encoding="utf-8"))
    assert told["verdict"] == "Take the repaired model."
    assert told["weights"]["file"] == "model.safetensors"
    assert told["preprocessing"]["mean"] == [0.4914, 0.4822, 0.4465]
    damaged = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    del damaged["weights"]["file"]
    (tmp_path / "card.json").write_text(json.dumps(damaged), encoding="utf-8")
    with pytest.raises(DataError, match=r"card\.json"):
        export(str(weights), kind="hf", out=str(tmp_path / "hub"), config_file=settings)


def test_a_folder_that_the_export_reads_from_is_refused(tmp_path: Path) -> None:
    settings = config_of(tmp_path)
    hub = tmp_path / "hub"
    export(str(tmp_path / "mine.safetensors"), kind="hf", out=str(hub), config_file=settings)
    before = (hub / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="holds a file that the export reads"):
        export(str(hub / "model.safetensors"), kind="hf", out=str(hub), config_file=settings)
    assert (hub / "model.safetensors").read_bytes() == before

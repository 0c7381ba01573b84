"""DNNs of the Hugging Face Hub: built from config.json, loaded, probed, written back; and refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from hub_cache import COMMIT, cifar_files, put, timm_files, transformers_files, use_cache
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.models import build_model, load_deployed
from metarepair.models.build import DeployedModel
from metarepair.probing.needs import probe_run
from metarepair.repairs.export import export_original, export_program
from metarepair.repairs.hf_folder import export_folder
from metarepair.reports.card import unjudged_card
from metarepair.weights import resolve_weights
from small import pixels
from tasks.datasets import DatasetInfo, dataset_info
from tasks.errors import ConfigError, UserError, WeightsError

CLASSES = ("cat", "dog", "fox")
CHANGED = 0.125


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_cache(monkeypatch, tmp_path / "hub")


def info(classes: tuple[str, ...] = CLASSES) -> DatasetInfo:
    return DatasetInfo(classes, 32, "cifar", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def settings(name: str, **model: Any) -> Config:
    return parse_config({"name": "a", "mining": {"experiences": ["snow"]}, "model": {"name": name, **model}})


def load(name: str, about: DatasetInfo | None = None, **model: Any) -> DeployedModel:
    """Load the DNN as a run does."""
    given = settings(name, **model).model
    return load_deployed(
        given.name,
        given.weights,
        about or info(),
        input_size=given.input_size,
        normalisation=given.normalisation,
        mean=given.mean,
        std=given.std,
    )


def test_a_model_of_timm_has_its_weights_and_preparation(cache: Path, tmp_path: Path) -> None:
    snapshot = put(cache, "me/net", timm_files(tmp_path / "saved"))
    deployed = load("hf-hub:me/net")
    assert (deployed.mean, deployed.std, deployed.input_size) == ((0.5,) * 3, (0.5,) * 3, 160)
    theirs = timm.create_model(
        "test_resnet", num_classes=3, checkpoint_path=snapshot / "model.safetensors"
    ).eval()
    images = pixels(2, size=160)
    x_BCHW = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        assert torch.allclose(deployed.logits(images), theirs(x_BCHW), atol=1e-5)
    (note,) = deployed.notes
    assert note.startswith(f"hf-hub:me/net@{COMMIT}: weights model.safetensors with the SHA-256 ")
    assert "input_size 160 as the hub states" in note


@pytest.mark.parametrize("architecture", ["test_resnet", "resnet8_cifar"])
def test_an_exported_model_of_the_hub_is_read_from_the_hub_again(
    cache: Path, tmp_path: Path, architecture: str
) -> None:
    put(cache, "me/net", timm_files(tmp_path / "saved", architecture))
    first = load("hf-hub:me/net")
    with torch.no_grad():
        for parameter in first.module.parameters():
            parameter.add_(CHANGED)
    card = unjudged_card(
        model={"name": first.name, "stem": None},
        classes=CLASSES,
        preprocessing=first.preprocessing,
        verdict="",
    )
    found = export_folder(first, pixels(2, size=160), tmp_path / "out", card)
    assert found.comparison is not None
    assert str(cache).encode() not in (found.path / "config.json").read_bytes()
    put(cache, "me/repaired", {path.name: path.read_bytes() for path in found.path.iterdir()})
    again = load("hf-hub:me/repaired")
    assert torch.allclose(again.logits(pixels(2, size=160)), first.logits(pixels(2, size=160)), atol=1e-5)
    assert again.preprocessing["mean"] == first.preprocessing["mean"]


def test_what_the_settings_say_replaces_what_the_hub_states(cache: Path, tmp_path: Path) -> None:
    put(cache, "me/net", timm_files(tmp_path / "saved"))
    deployed = load("hf-hub:me/net", input_size=96, mean=(0.2, 0.2, 0.2))
    assert (deployed.mean, deployed.std, deployed.input_size) == ((0.2,) * 3, (0.5,) * 3, 96)
    assert "input_size 96, where it states 160" in deployed.notes[0]
    assert load("hf-hub:me/net", normalisation="dataset").mean == (0.1, 0.2, 0.3)


def test_other_weights_may_be_given(cache: Path, tmp_path: Path) -> None:
    files = timm_files(tmp_path / "saved")
    put(cache, "me/net", files)
    state = load_file(tmp_path / "saved" / "model.safetensors")
    torch.save(state | {"fc.bias": state["fc.bias"] + CHANGED}, tmp_path / "mine.pth")
    (tmp_path / "saved" / "model.safetensors").unlink()
    deployed = load("hf-hub:me/net", weights=str(tmp_path / "mine.pth"))
    assert torch.equal(deployed.module.state_dict()["fc.bias"], state["fc.bias"] + CHANGED)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_classifier_of_transformers_gives_its_logits(cache: Path, tmp_path: Path, kind: str) -> None:
    import transformers

    snapshot = put(cache, "me/net", transformers_files(tmp_path / "saved", kind))
    deployed = load("hf:me/net")
    assert (deployed.mean, deployed.std, deployed.input_size) == ((0.5,) * 3, (0.25,) * 3, 32)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(snapshot).eval()
    processed = transformers.AutoImageProcessor.from_pretrained(snapshot)(
        list(pixels(2, size=32)), return_tensors="pt"
    )
    with torch.no_grad():
        assert torch.allclose(deployed.logits(pixels(2, size=32)), theirs(**processed).logits, atol=1e-5)
    again = copy.deepcopy(deployed.module)
    again.classifier[-1].weight.data.zero_() if kind == "resnet" else again.classifier.weight.data.zero_()
    x_BCHW = deployed.normalise(pixels(2, size=32))
    assert not torch.equal(again(x_BCHW), deployed.module(x_BCHW))
    assert not deployed.module.train()._classifier[0].eval().training
    assert deployed.module.train()._classifier[0].training


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_classifier_of_transformers_can_be_repaired(cache: Path, tmp_path: Path, kind: str) -> None:
    put(cache, "me/net", transformers_files(tmp_path / "saved", kind))
    found = probe_run((), load("hf:me/net"), pixels(8, size=32), settings("hf:me/net"), trains=True)
    assert found is not None


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_repaired_classifier_of_transformers_goes_back_under_the_names_of_its_file(
    cache: Path, tmp_path: Path, kind: str
) -> None:
    import transformers

    snapshot = put(cache, "me/net", transformers_files(tmp_path / "saved", kind))
    deployed = load("hf:me/net")
    changed = [name for name, _ in deployed.module.named_parameters()]
    with torch.no_grad():
        for parameter in deployed.module.parameters():
            parameter.add_(CHANGED)
    back = tmp_path / "back"
    back.mkdir()
    (back / "config.json").write_bytes((snapshot / "config.json").read_bytes())
    export_original(deployed, resolve_weights("hf:me/net"), back / "model.safetensors", entry=None)
    before, after = load_file(snapshot / "model.safetensors"), load_file(back / "model.safetensors")
    assert before.keys() == after.keys()
    assert sum(not torch.equal(before[name], after[name]) for name in before) == len(changed)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(back).eval()
    x_BCHW = deployed.normalise(pixels(2, size=32))
    with torch.no_grad():
        assert torch.allclose(theirs(pixel_values=x_BCHW).logits, deployed.module(x_BCHW), atol=1e-4)


def test_a_classifier_of_transformers_is_exported_as_a_program(cache: Path, tmp_path: Path) -> None:
    put(cache, "me/net", transformers_files(tmp_path / "saved"))
    found = export_program(load("hf:me/net"), pixels(4, size=32), "torch", tmp_path, class_names=CLASSES)
    assert found.difference < 1e-5


def test_a_processor_without_normalisation_feeds_pixels_in_0_to_1(cache: Path, tmp_path: Path) -> None:
    put(cache, "me/net", transformers_files(tmp_path / "saved", do_normalize=False, rescale_factor=1 / 127.5))
    deployed = load("hf:me/net")
    x_BCHW = deployed.normalise(np.full((1, 32, 32, 3), 255, np.uint8))
    assert x_BCHW.unique().tolist() == pytest.approx([2.0])


@pytest.mark.parametrize("step", ["do_flip_channel_order", "rescale_offset", "include_top"])
def test_a_processor_with_other_steps_is_refused(cache: Path, tmp_path: Path, step: str) -> None:
    files = transformers_files(tmp_path / "saved")
    processor = json.loads(files["preprocessor_config.json"]) | {step: True}
    put(cache, "me/net", files | {"preprocessor_config.json": json.dumps(processor).encode()})
    with pytest.raises(ConfigError, match=f"sets {step}"):
        load("hf:me/net")


@pytest.mark.parametrize("name", ["hf-hub:me/net", "hf:me/net"])
def test_another_number_of_classes_is_refused_with_both(cache: Path, tmp_path: Path, name: str) -> None:
    made = timm_files if name.startswith("hf-hub") else transformers_files
    put(cache, "me/net", made(tmp_path / "saved"))
    with pytest.raises(WeightsError, match=r"has 3 classes \(cat, dog, fox, …\), and the data set has 4\."):
        load(name, info(("a", "b", "c", "d")))


@pytest.mark.parametrize("name", ["hf-hub:me/net", "hf:me/net"])
def test_classes_in_another_order_are_refused(cache: Path, tmp_path: Path, name: str) -> None:
    made = timm_files if name.startswith("hf-hub") else transformers_files
    put(cache, "me/net", made(tmp_path / "saved"))
    with pytest.raises(WeightsError, match="its class 0 is 'cat', the data set's is 'dog'"):
        load(name, info(("dog", "cat", "fox")))


def test_a_model_of_the_other_library_is_named_with_its_kind(cache: Path, tmp_path: Path) -> None:
    put(cache, "me/timm", timm_files(tmp_path / "timm"))
    put(cache, "me/other", transformers_files(tmp_path / "other"))
    with pytest.raises(ConfigError, match=f"It is one of timm: give hf-hub:me/timm@{COMMIT}"):
        load("hf:me/timm")
    with pytest.raises(ConfigError, match=f"It is one of transformers: give hf:me/other@{COMMIT}"):
        load("hf-hub:me/other")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "resnet8_cifr"}, "did you mean 'resnet8_cifar'"),
        (
            {"architecture": "os:system"},
            r"which timm .* does not have\. Give a model that it has, or install",
        ),
        ({"architecture": ["resnet8_cifar"]}, "names no architecture"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "checkpoint_path, which builds no model"),
        ({"model_args": {"pretrained": True}}, "pretrained, which builds no model"),
        ({"model_args": {"widths": "wide"}}, r"cannot be built \("),
        ({"pretrained_cfg": {"input_size": [1, 28, 28]}}, "images of 1 channels"),
        ({"pretrained_cfg": {"input_size": [3, 32, 64]}}, "32 × 64 pixels, and only square"),
        (
            {"pretrained_cfg": {"input_size": [3, 9000, 9000]}},
            "model.input_size=9000: it must be at most 1024",
        ),
    ],
)
def test_a_hostile_or_odd_config_is_refused_in_a_sentence(
    cache: Path, change: dict[str, Any], said: str
) -> None:
    put(cache, "me/net", cifar_files(**change))
    with pytest.raises(UserError, match=said):
        load("hf-hub:me/net", dataset_info("cifar10"))


def test_code_in_a_repository_is_never_run(cache: Path, tmp_path: Path) -> None:
    files = transformers_files(tmp_path / "saved")
    content = json.loads(files["config.json"]) | {
        "model_type": "strange",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"},
    }
    evil = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    put(cache, "me/net", files | {"config.json": json.dumps(content).encode(), "evil.py": evil})
    with pytest.raises(ConfigError, match=r"model\.name='hf:me/net@.*' cannot be built"):
        load("hf:me/net")
    assert not (tmp_path / "ran").exists()


def test_a_missing_package_is_named_with_the_command(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarepair.weights.stated.find_spec", lambda _: None)
    put(cache, "me/net", cifar_files())
    with pytest.raises(ConfigError, match=r"pip install 'metarepair\[transformers\]'"):
        load("hf:me/net")


@pytest.mark.parametrize("name", ["hf_hub:me/net", "hfhub:me/net", "torch-vision:resnet18"])
def test_a_misspelt_hub_is_refused_with_near_names(name: str) -> None:
    with pytest.raises(ConfigError, match=r"did you mean '(hf-hub|torchvision)'"):
        build_model(name, 10)


def test_a_repository_without_its_hub_is_refused_with_the_forms() -> None:
    with pytest.raises(ConfigError, match="for one of a hub, its name as hf-hub:timm/"):
        build_model("timm/resnet18.a1_in1k", 10)

"""Test `metarepair.repair`: it repairs a copy of any module with any failing images."""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import metarepair
from metarepair import RepairConfig, Repaired, repair
from metarepair.models import load_deployed
from metarepair.repairs import api
from tasks.datasets import dataset_info, load_dataset
from tasks.errors import ConfigError, DataError, DivergedError, StageError, UserError, WeightsError
from tasks.storage.manifest import write_manifest

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
QUICK = RepairConfig.model_validate(
    {
        "repair": {"episodes": 2, "tasks": 1, "rates": [0.03, 0.01]},
        "task": {"shots": 5},
        "inner": {"steps": 2},
    }
)


@cache
def shipped() -> nn.Module:
    return load_deployed("resnet8_cifar", "shipped:resnet8_cifar10", dataset_info("cifar10_sample")).module


@cache
def failing() -> tuple[np.ndarray, np.ndarray]:
    """Inverted images that the shipped DNN misclassifies."""
    data = load_dataset("cifar10_sample", "test")
    images, labels = 255 - data.images(np.arange(500)), data.labels_N[:500]
    deployed = load_deployed("resnet8_cifar", "shipped:resnet8_cifar10", dataset_info("cifar10_sample"))
    wrong = deployed.logits(images).argmax(1).numpy() != labels
    return images[wrong], labels[wrong]


def call(failures: Any = None, **options: Any) -> Repaired:
    options = {"config": QUICK, "mean": MEAN, "std": STD} | options
    return repair(options.pop("model", None) or shipped(), failures or failing(), **options)


def test_finetuning_repairs_a_copy_and_leaves_the_given_module_as_it_was() -> None:
    model = copy.deepcopy(shipped()).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = call(model=model)
    assert found.method == "finetune"
    assert found.validation_before == 0.0
    assert found.validation_after > 0.1
    assert found.rate in (0.03, 0.01)
    assert found.episode in (0, 1)
    assert found.images_seen == 2 * 2 * 50 * 2  # episodes × inner steps × support images × rates
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert found.module is not model
    assert not found.module.training
    assert found.module.state_dict().keys() == before.keys()


def test_the_reported_validation_accuracy_is_that_of_the_module() -> None:
    found = call()
    images, labels = failing()
    x = (
        torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)
    ) / torch.tensor(STD).view(3, 1, 1)
    with torch.inference_mode():
        right = (found.module(x).argmax(1).numpy() == labels).mean()
    assert right == pytest.approx(found.validation_after, abs=0.15)


def test_batch_norm_adaptation_moves_statistics_alone_and_has_no_rate() -> None:
    found = call(method="bn_adapt")
    assert found.rate is found.episode is None
    assert found.validation_after > 0.05
    own = dict(shipped().named_parameters())
    assert all(torch.equal(v, own[k]) for k, v in found.module.named_parameters())


def test_clean_images_show_what_a_repair_breaks() -> None:
    data = load_dataset("cifar10_sample", "test")
    found = call(clean=(data.images(np.arange(200)), data.labels_N[:200]))
    assert found.clean_before is not None
    assert found.clean_after is not None
    assert found.clean_after < found.clean_before > 0.8


@pytest.mark.parametrize("limit", ["max_broken", "max_clean_drop"])
def test_a_limit_on_clean_images_asks_for_clean_training_before_the_repair(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_dataset("cifar10_sample", "test")
    clean = (data.images(np.arange(50)), data.labels_N[:50])

    def no_repair(*_: object) -> None:
        raise AssertionError("a repair was begun")

    monkeypatch.setattr(api, "repair_fairly", no_repair)
    config = RepairConfig.model_validate(QUICK.model_dump() | {"limits": {limit: 0.1}})
    with pytest.raises(ConfigError, match=rf"limits\.{limit}=0\.1 .*Give clean_training=\(images, labels\)"):
        call(config=config, clean=clean)
    with pytest.raises(AssertionError, match="a repair was begun"):
        call(config=config, clean_training=clean)


def test_the_result_in_words_does_not_list_the_modules_layers() -> None:
    found = call(method="bn_adapt", budget="10m")
    assert "Conv2d" not in repr(found)
    assert "method='bn_adapt'" in repr(found)


def test_a_method_that_learns_from_clean_images_gets_them_or_reports_their_absence() -> None:
    data = load_dataset("cifar10_sample", "train")
    training = (data.images(np.arange(300)), data.labels_N[:300])
    config = QUICK.model_copy(
        update={"methods": {"sensei": {"epochs": 1, "batch_size": 50, "variants": 3, "keep": 2}}}
    )
    found = call(method="sensei", config=config, clean_training=training)
    assert found.gradient_steps > 1
    with pytest.raises(ConfigError, match="clean training split"):
        call(method="sensei", config=config)
    with pytest.raises(DataError, match="one size"):
        call(method="sensei", config=config, clean_training=(training[0][:, :16], training[1]))
    with pytest.raises(ConfigError, match="uint8"):
        call(method="sensei", config=config, clean_training=(training[0].astype(np.float32), training[1]))
    with pytest.raises(ConfigError, match="prepares DNNs"):
        call(method="apricot", clean_training=training)


def test_every_way_to_hand_over_the_images_gives_the_same_repair() -> None:
    images, labels = failing()
    prepared = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / (
        torch.tensor(STD).view(3, 1, 1)
    )
    once = RepairConfig.model_validate({"repair": {"episodes": 1, "tasks": 1}, "inner": {"steps": 1}})
    plain = call((images, labels), config=once)
    others = [
        call((torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)), config=once),
        call([(Image.fromarray(i), int(v)) for i, v in zip(images, labels, strict=True)], config=once),
        call([(i, v) for i, v in zip(images, labels, strict=True)], config=once),
        call(
            torch.utils.data.TensorDataset(prepared, torch.from_numpy(labels)),
            mean=None,
            std=None,
            config=once,
        ),
    ]
    for other in others:
        assert other.validation_after == pytest.approx(plain.validation_after, abs=0.011)
        assert other.images_seen == plain.images_seen


class Tied(nn.Module):
    """Has a tensor with two names, a non-persistent buffer, grey images, and half of its parameters frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.head = nn.Linear(16, 3)
        self.head.bias.requires_grad_(False)
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BD = torch.relu(self.second(torch.relu(self.first(x_BCHW.flatten(1)))))
        logits_BK: Tensor = self.head(h_BD) * self.scale
        return logits_BK


def test_a_module_with_shared_weights_and_grey_images_is_repaired() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = (rng.integers(0, 60, (90, 4, 4)) + 90 * labels[:, None, None]).clip(0, 255).astype(np.uint8)
    found = repair(Tied(), (images, labels), mean=[0.5], std=[0.5], config=QUICK)
    assert found.validation_after >= found.validation_before
    assert found.module.second.weight is found.module.first.weight
    assert found.validation_before > 0
    assert any(
        re.fullmatch(r"\d+ of the 90 given images are not failures: the model already .* correctly", note)
        for note in found.notes
    )


def meta(folder: Path, tensors: dict[str, Tensor], name: str = "start.safetensors") -> Path:
    """Write a meta/<target>/ folder as a run does; runs before 0.2 called the file model.safetensors."""
    folder.mkdir()
    save_file(
        {k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()},
        folder / name,
    )
    settings = {"inner": {"steps": 2, "rate": 0.02}, "task": {"shots": 1, "query_size": 10}}
    write_manifest(folder, stage="train fog", config=settings, inputs={}, files=[name])
    return folder


@pytest.mark.parametrize("name", ["start.safetensors", "model.safetensors"])
def test_metarepair_starts_from_a_runs_meta_folder_with_its_inner_loop(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    small = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    start = meta(tmp_path / "fog", {k: v + 0.1 for k, v in small.state_dict().items()}, name)
    found = call(model=small, start=start, config=None)
    assert found.method == "metarepair"
    assert found.rate == 0.02
    settings = {"inner": {"steps": 2, "rate": 0.02}, "task": {"shots": 1}, "repair": {"rates": [0.02]}}
    other = copy.deepcopy(small)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1
    same = call(model=other, config=RepairConfig.model_validate(settings))
    assert all(torch.equal(v, same.module.state_dict()[k]) for k, v in found.module.state_dict().items())


def test_a_start_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs start"):
        call(method="metarepair")
    with pytest.raises(ConfigError, match="finetune does not start from it"):
        call(method="finetune", start=tmp_path)
    with pytest.raises(StageError, match="not finished"):
        call(start=tmp_path / "absent")
    other = meta(tmp_path / "other", {"head.weight": torch.zeros(2)})
    with pytest.raises(WeightsError, match="missing there or have another shape"):
        call(start=other)
    write_manifest(other, stage="mine fog", config={}, inputs={}, files=[])
    with pytest.raises(ConfigError, match="is not a meta/<target>/ folder"):
        call(start=other, config=None)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mean": None}, "uint8 images need mean"),
        ({"std": (1, 1)}, r"std=\(1\.0, 1\.0\) has 2 numbers; the images of failures have 3 channels"),
        ({"std": (1, 0, 1)}, "must be above 0"),
        ({"model": nn.Identity()}, "has no parameters"),
        ({"model": "resnet50"}, "model is str"),
        ({"mean": 0.5}, "mean=0.5 is not one number for each channel"),
        ({"mean": ("a", "b", "c")}, "is not one number for each channel"),
        ({"mean": ()}, "mean has no numbers"),
        (
            {"mean": (123.7, 116.3, 103.5)},
            r"outside 0\.\.1.*divide both by 255.*\[0\.4851, 0\.4561, 0\.4059\]",
        ),
        ({"std": (58.4, 57.1, 57.4)}, r"outside 1/255\.\.1.*\[0\.229, 0\.2239, 0\.2251\]"),
        ({"config": {"repair": {"rates": [0.1]}}}, "config is dict; give RepairConfig"),
        ({"config": RepairConfig(methods={"finetunee": {}})}, "no repair method 'finetunee'; did you mean"),
        ({"model": nn.Linear(3, 2)}, r"returns shape \[2, 3, 32, 2\]|cannot take a batch"),
        ({"method": "finetun"}, "no repair method 'finetun'; did you mean 'finetune'"),
    ],
)
def test_a_model_or_option_that_cannot_be_used_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        call(**options)


ZEROS = np.zeros((6, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("failures", "says"),
    [
        ((ZEROS, np.zeros(5, int)), "6 images but 5 labels"),
        ((ZEROS[:0], np.zeros(0, int)), "there are no images"),
        ((ZEROS[:1], np.zeros(1, int)), "failures has one image.*give two or more"),
        ((ZEROS, np.zeros(6)), r"label of image 0 is 0\.0 \(float64\)"),
        ((ZEROS, np.full(6, 10)), "the label of image 0 is 10; ResNet8 has 10 classes"),
        ((ZEROS.astype(np.int64), np.zeros(6, int)), "images are int64"),
        ((ZEROS[None], np.zeros(1, int)), "have the shape"),
        (iter([1]), "neither .images, labels. nor a sequence"),
        ([3], "item 0 is int, not a pair"),
        ([("cat.png", 3)], "an image is str"),
        ([(ZEROS[0], 0), (ZEROS[0, :4], 1)], "images have different sizes"),
    ],
)
def test_failures_that_cannot_be_used_are_refused(failures: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        call(failures)


def test_a_rate_that_diverges_is_reported() -> None:
    config = RepairConfig.model_validate({"repair": {"rates": [10.0], "episodes": 3}, "inner": {"steps": 20}})
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 512), nn.Linear(512, 512), nn.Linear(512, 3))
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3)).astype(np.uint8)
    with pytest.raises(DivergedError, match="Lower the rates"):
        repair(model, (images, np.arange(30) % 3), mean=MEAN, std=STD, config=config)


def test_the_package_names_what_it_offers() -> None:
    assert metarepair.__all__ == sorted(metarepair.__all__)
    assert {"RepairConfig", "Repaired", "repair"} <= set(dir(metarepair))
    with pytest.raises(AttributeError, match="no attribute 'repare'"):
        metarepair.repare  # noqa: B018  the access is the test

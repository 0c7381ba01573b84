"""Test the narrow ConvNeXt: its architecture, its shipped weights, and that it has no batch norm to adapt."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from metarepair import RepairConfig, repair
from metarepair.adaptation.repair_data import RepairData
from metarepair.methods import MethodContext, get_method
from metarepair.models.build import DeployedModel, build_model, load_deployed
from tasks.datasets import ArrayDataset, DataSource, dataset_info, load_dataset
from tasks.environments import corrupted_images
from tasks.records import Failures

SAMPLE = DataSource(name="cifar10_sample")
ROWS = np.arange(1000)


@pytest.fixture(scope="module")
def deployed() -> DeployedModel:
    return load_deployed("convnext_cifar", "shipped:convnext_cifar10", dataset_info(SAMPLE))


@pytest.fixture(scope="module")
def test_split() -> ArrayDataset:
    return load_dataset(SAMPLE, "test")


@pytest.fixture(scope="module")
def failures(deployed: DeployedModel, test_split: ArrayDataset) -> Failures:
    """The failures of the shipped weights under Gaussian noise."""
    images = corrupted_images(test_split, ROWS, corruption="gaussian_noise", severity=3, seed=0)
    predicted = deployed.logits(images).argmax(1).numpy()
    whole = Failures(
        corruption="gaussian_noise",
        image_ids_N=test_split.image_ids_N[ROWS],
        severities_N=np.full(len(ROWS), 3),
        labels_N=test_split.labels_N[ROWS],
        predicted_N=predicted,
        images_NHWC=images,
    )
    return whole.take(np.flatnonzero(predicted != whole.labels_N))


def test_it_is_a_convnext_without_batch_norm_of_half_a_million_parameters() -> None:
    module = timm.create_model("convnext_cifar", num_classes=10)
    assert sum(p.numel() for p in module.parameters()) == 412_330
    assert not any(isinstance(layer, _BatchNorm) for layer in module.modules())
    x = module.stem(torch.zeros(1, 3, 32, 32))
    for stage, info in zip(module.stages, module.feature_info, strict=True):
        x = stage(x)
        assert x.shape[1:] == (info["num_chs"], 32 // info["reduction"], 32 // info["reduction"])
    module.reset_classifier(7)
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_the_small_stem_doubles_its_maps() -> None:
    module = build_model("convnext_cifar", 10, stem="cifar")
    assert module.get_submodule("stem")(torch.zeros(1, 3, 32, 32)).shape == (1, 32, 32, 32)
    assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("name", ["convnext_cifar", "resnet8_cifar"])
def test_no_weights_are_looked_for_on_a_hub(name: str) -> None:
    with pytest.raises(ValueError, match=r"checkpoint_path, or an exported folder as local-dir:FOLDER"):
        timm.create_model(name, pretrained=True)


def test_the_shipped_weights_have_the_accuracy_in_their_readme(
    deployed: DeployedModel, test_split: ArrayDataset
) -> None:
    right = deployed.logits(test_split.images(slice(0, 1000))).argmax(1).numpy() == test_split.labels_N[:1000]
    assert right.mean() > 0.77


def test_batch_norm_adaptation_reports_that_there_is_nothing_to_adapt(
    deployed: DeployedModel, failures: Failures
) -> None:
    data = RepairData(
        target="gaussian_noise",
        learn=failures.take(np.arange(50)),
        validation=failures.take(np.arange(50, 80)),
    )
    context = MethodContext(config=RepairConfig(), seed=0)
    model = get_method("bn_adapt").repair(deployed, data, context)
    assert model.notes == ("this DNN has no batch-norm statistics: nothing to adapt",)
    assert model.images_seen == 0
    state = deployed.module.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in {**model.parameters, **model.buffers}.items())


def test_finetuning_repairs_it(deployed: DeployedModel, failures: Failures) -> None:
    config = RepairConfig.model_validate(
        {"repair": {"episodes": 1, "tasks": 2, "rates": [0.1]}, "task": {"shots": 5}, "inner": {"steps": 2}}
    )
    given = (np.asarray(failures.images_NHWC), failures.labels_N)
    found = repair(deployed.module, given, mean=deployed.mean, std=deployed.std, config=config)
    assert found.validation_before == 0.0
    assert found.validation_after > 0.1

"""Test that D_fail reuses the predictions on the corrupted set where its images are the same, and calibration."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import metarepair.evaluation.predictions as predictions
from metarepair.adaptation.accuracy import predict
from metarepair.evaluation.evaluate import _calibration
from metarepair.evaluation.predictions import Predictions, called, predict_all, predicted_on
from metarepair.methods import RepairedModel
from metarepair.models.build import DeployedModel
from small import deployed_of
from tasks.datasets import ArrayDataset, load_dataset
from tasks.environments import CorruptedImages
from tasks.environments import corrupted as corrupted_split
from tasks.experiences.mining import mine
from tasks.records import Failures

SEVERITIES = (2, 5)
BATCH = 11


@pytest.fixture(scope="module")
def test_split() -> ArrayDataset:
    sample = load_dataset("cifar10_sample", "test").head(40)
    order = np.random.default_rng(0).permutation(40)  # ids need not be in order
    return replace(
        sample,
        image_ids_N=sample.image_ids_N[order] * 3,
        labels_N=sample.labels_N[order],
        images_NHWC=sample.images_NHWC[order],
    )


@pytest.fixture(scope="module")
def deployed() -> DeployedModel:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 6, 5, stride=3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(600, 10))
    return deployed_of(module.eval(), num_classes=10)


@pytest.fixture(scope="module")
def models(deployed: DeployedModel) -> list[RepairedModel]:
    """Two repaired models: other nets of the same architecture."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for name in "ab":
        parameters = {
            k: p.detach() + 0.2 * torch.randn(p.shape, generator=generator)
            for k, p in deployed.module.named_parameters()
        }
        buffers = dict(deployed.module.named_buffers())
        made.append(
            RepairedModel(
                method=name, parameters=parameters, buffers=buffers, images_seen=0, gradient_steps=0
            )
        )
    return made


@pytest.fixture(scope="module")
def corrupted(
    deployed: DeployedModel, models: list[RepairedModel], test_split: ArrayDataset
) -> dict[int, Predictions]:
    nets = called(deployed, models)
    fog = foggy(test_split)
    return {
        s: predict_all(deployed, nets, partial(fog.images, severity=s), np.arange(40), batch_size=BATCH)
        for s in SEVERITIES
    }


def foggy(data: ArrayDataset) -> CorruptedImages:
    return corrupted_split(data, "fog", severities=SEVERITIES, seed=3)


def mined(deployed: DeployedModel, data: ArrayDataset, keep: str) -> Failures:
    def classes(images: np.ndarray) -> np.ndarray:
        return deployed.module(deployed.normalise(images)).argmax(1).numpy()

    with torch.no_grad():
        found = mine(
            classes,
            foggy(data),
            range(40),
            seed=3,
            batch_size=11,
            keep=keep,
        ).failures  # type: ignore[arg-type]  # the tests' strings are kinds
    assert len(found) > 20
    if keep == "recomputed":
        return replace(found, images_NHWC=found.images_NHWC.read_from(foggy(data)))  # type: ignore[union-attr]
    return found


def predict_again(deployed: DeployedModel, models: list[RepairedModel], fail: Failures) -> np.ndarray:
    return np.stack([predict(deployed, m.parameters, m.buffers, fail).argmax(1).numpy() for m in models])


@pytest.mark.parametrize("keep", ["stored", "recomputed"])
def test_classes_on_d_fail_equal_a_prediction_on_its_pixels_without_predicting_again(
    keep: str,
    deployed: DeployedModel,
    models: list[RepairedModel],
    test_split: ArrayDataset,
    corrupted: dict[int, Predictions],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail = mined(deployed, test_split, keep)
    wanted = predict_again(deployed, models, fail)
    assert (wanted[0] != wanted[1]).any()  # the models differ in their predictions
    monkeypatch.setattr(predictions, "predict", None)  # a call would fail
    assert (predicted_on(fail, deployed, models, test_split.image_ids_N[:40], corrupted) == wanted).all()


def test_images_that_were_mined_with_other_pixels_are_predicted_on_with_those_pixels(
    deployed: DeployedModel,
    models: list[RepairedModel],
    test_split: ArrayDataset,
    corrupted: dict[int, Predictions],
) -> None:
    fail = mined(deployed, test_split, "stored")
    pixels = np.array(fail.images_NHWC)
    pixels[::3] = 255 - pixels[::3]
    other = replace(fail, images_NHWC=pixels)
    wanted = predict_again(deployed, models, other)
    assert (wanted != predict_again(deployed, models, fail)).any()
    assert (predicted_on(other, deployed, models, test_split.image_ids_N[:40], corrupted) == wanted).all()


def test_severities_and_images_outside_the_corrupted_set_are_predicted_on(
    deployed: DeployedModel,
    models: list[RepairedModel],
    test_split: ArrayDataset,
    corrupted: dict[int, Predictions],
) -> None:
    fail = mined(deployed, test_split, "stored")
    wanted = predict_again(deployed, models, fail)
    assert (
        predicted_on(fail, deployed, models, test_split.image_ids_N[:40], {2: corrupted[2]}) == wanted
    ).all()
    foreign = replace(fail, image_ids_N=fail.image_ids_N + 1)  # between the split's ids, and after the last
    assert (predicted_on(foreign, deployed, models, test_split.image_ids_N[:40], corrupted) == wanted).all()


def test_confidence_is_the_softmax_of_the_predicted_class(
    deployed: DeployedModel, test_split: ArrayDataset
) -> None:
    clean = predict_all(deployed, called(deployed, []), test_split.images, np.arange(40), batch_size=BATCH)
    with torch.no_grad():
        x = deployed.normalise(test_split.images(np.arange(40)))
        top = torch.softmax(deployed.module(x), dim=1).max(1)
    assert (clean.classes[0] == top.indices.numpy()).all()
    np.testing.assert_allclose(clean.confidence[0], top.values.numpy(), rtol=1e-5)


def test_calibration_is_the_gap_between_confidence_and_accuracy() -> None:
    labels = np.zeros(4, dtype=np.int64)
    sure = np.full(4, 0.9, dtype=np.float32)
    unsure = np.full(4, 0.3, dtype=np.float32)
    right, half = np.zeros(4, dtype=np.int64), np.array([0, 0, 1, 1])
    assert _calibration([(sure, right)], labels) == pytest.approx(0.1)
    assert _calibration([(sure, right), (unsure, half)], labels) == pytest.approx((0.1 + 0.2) / 2)
    pooled = _calibration([(sure, half), (sure, right)], labels)  # accuracy 0.75
    assert pooled == pytest.approx(0.15)

"""Test that wrong preprocessing of a DNN is detected on clean images, with accuracies as evidence."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarepair.models import DeployedModel, build_model, load_deployed
from metarepair.models.clean_check import check_on_clean
from tasks.datasets import dataset_info, load_dataset
from tasks.errors import WeightsError

RIGHT_MEAN, RIGHT_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@cache
def shipped() -> DeployedModel:
    return load_deployed("resnet8_cifar", "shipped:resnet8_cifar10", dataset_info("cifar10_sample"))


@cache
def clean_images():  # type: ignore[no-untyped-def]  # the type of the data set does not matter
    return load_dataset("cifar10_sample", "test")


class Around(nn.Module):
    """The shipped DNN with a change to its logits."""

    def __init__(self, change) -> None:  # type: ignore[no-untyped-def]  # a function of logits
        super().__init__()
        self.inner, self.change = shipped().module, change

    def forward(self, x_BCHW: Tensor) -> Tensor:
        changed: Tensor = self.change(self.inner(x_BCHW))
        return changed


class Flat(nn.Module):
    """A DNN for images of 16 × 16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 16 * 16, 10)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.head(x_BCHW.flatten(1))
        return logits


def test_an_accurate_dnn_is_checked_on_64_images_only() -> None:
    found = check_on_clean(shipped(), clean_images())
    assert found.images == 64
    assert found.accuracy > 0.75
    assert found.note is None


def test_a_missing_normalisation_is_named() -> None:
    fed = replace(shipped(), mean=(0.5, 0.5, 0.5), std=(20.0, 20.0, 20.0))
    with pytest.raises(
        WeightsError,
        match=r"near chance.*the normalisation (CIFAR|ImageNet)'s it is [89]\d\.\d%.*model\.mean",
    ):
        check_on_clean(fed, clean_images())


def test_a_dnn_above_chance_that_another_normalisation_helps_is_noted_not_refused() -> None:
    fed = replace(shipped(), mean=(0.9, 0.2, 0.1), std=(0.6, 0.6, 0.6))
    found = check_on_clean(fed, clean_images())
    assert 0.19 < found.accuracy < 0.5
    assert found.note is not None
    assert re.fullmatch(
        r"with the normalisation \S+ it is (8|9)\d\.\d% of 128: set model\.mean to \[.*\] and model\.std to \[.*\]",
        found.note,
    )


def test_another_order_of_the_classes_is_named() -> None:
    turned = replace(shipped(), module=Around(lambda logits_BK: logits_BK.roll(3, dims=1)))
    with pytest.raises(
        WeightsError, match=r"another order of the classes \(its class \d goes with the label \d\)"
    ):
        check_on_clean(turned, clean_images())


def test_an_untrained_dnn_is_refused_with_hints() -> None:
    torch.manual_seed(0)
    untrained = replace(shipped(), module=build_model("resnet8_cifar", 10).eval())
    with pytest.raises(
        WeightsError,
        match=r"gets 9\.4% of 512 clean images .*near chance \(10\.0%\)\. \d\d% of the images get the same class, \d\. "
        r"Also tried: order of the classes \(1\), normalisation with channel order \(10\), size \(2\)\. The best of "
        r"these, .*, gives \d\d\.\d% of \d+ images\. Check model\.weights",
    ) as refusal:
        check_on_clean(untrained, clean_images())
    assert not re.search("probabl|likely|untrained", str(refusal.value))


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Around(lambda logits_BK: logits_BK[:, :7]), "returns 7 logits, and the data set has 10 classes"),
        (Around(lambda logits_BK: (logits_BK, 0)), "returns tuple, not a tensor of logits"),
        (Around(lambda logits_BK: logits_BK[..., None]), r"returns shape \[2, 10, 1\] for 2 images"),
        (Flat(), r"cannot take a batch of images of 32×32 pixels.*model\.input_size"),
        (
            nn.Sequential(nn.Conv2d(1, 10, 32), nn.Flatten()),
            r"cannot take a batch of .* with 3 channels.*number of channels",
        ),
    ],
)
def test_a_dnn_of_another_shape_is_refused(module: nn.Module, says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        check_on_clean(replace(shipped(), module=module), clean_images())


def test_the_first_images_cover_all_classes_even_if_labels_are_sorted() -> None:
    whole = clean_images()
    rows = np.argsort(whole.labels_N, kind="stable")
    images, labels = whole.images(rows), whole.labels_N[rows]

    class Sorted:
        name, labels_N = "sorted", labels

        def images(self, rows: np.ndarray) -> np.ndarray:
            seen.append(labels[rows])
            return images[rows]

    seen: list[np.ndarray] = []
    assert check_on_clean(shipped(), Sorted()).images == 64
    assert set(seen[0][:64]) == set(range(10))

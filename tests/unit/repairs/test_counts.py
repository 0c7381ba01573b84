"""Test that logits, the clean check and `repair()` take any number of images and any size of the last batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metarepair import RepairConfig, repair
from metarepair.data.given_images import GivenImages, collect_images
from metarepair.models import DeployedModel
from metarepair.models.clean_check import FEWEST, check_on_clean
from small import deployed_of
from tasks.errors import DataError, WeightsError

QUICK = RepairConfig(repair={"episodes": 1, "tasks": 1}, task={"shots": 2}, inner={"steps": 1})
CLASSES = 4


def deployed() -> DeployedModel:
    """A DNN that returns the brightest of four columns as the class."""
    module = nn.Sequential(nn.AvgPool2d((4, 1)), nn.Flatten(), nn.Linear(12, CLASSES, bias=False)).eval()
    with torch.no_grad():
        module[2].weight.copy_(torch.eye(CLASSES).repeat(1, 3))
    return deployed_of(module, num_classes=CLASSES, name="columns")


def columns(count: int, wrong: int = 0) -> GivenImages:
    """`count` images; the labels of the last `wrong` ones differ from the DNN's class."""
    rng = np.random.default_rng(count)
    classes = rng.integers(0, CLASSES, count)
    images = rng.integers(0, 100, (count, 4, 4, 3))
    images[np.arange(count), :, classes] += 150
    labels = (classes + (np.arange(count) >= count - wrong)) % CLASSES
    return collect_images((images.astype(np.uint8), labels), name="clean")


@given(count=st.integers(0, 70), batch_size=st.integers(1, 75))
@settings(max_examples=30, deadline=None)
def test_logits_are_those_of_each_image_whatever_the_batches(count: int, batch_size: int) -> None:
    net, images = deployed(), columns(70).images_NHWC
    found = net.logits(images[:count], batch_size=batch_size)
    assert found.shape == (count, CLASSES)
    with torch.inference_mode():
        alone = [net.module(net.normalise(images[i : i + 1])) for i in range(count)]
    torch.testing.assert_close(found, torch.cat(alone) if alone else torch.empty(0, CLASSES))


@given(data=st.data(), count=st.integers(1, 140) | st.sampled_from([511, 512, 513, 600]))
@settings(max_examples=25, deadline=None)
def test_the_clean_check_tells_the_accuracy_on_any_number_of_images(data: st.DataObject, count: int) -> None:
    wrong = data.draw(st.integers(0, min(count, 300)))
    images = columns(count, wrong)
    looked_at = min(count, 512)
    try:
        found = check_on_clean(deployed(), images)
    except WeightsError:
        assert looked_at >= FEWEST
        assert wrong / count > 0.5  # near chance on the checked images
        return
    assert found.images in (min(count, 64), looked_at)
    assert 0 <= found.accuracy <= 1
    if found.images == count:
        assert found.accuracy == pytest.approx((count - wrong) / count)
    assert math.isfinite(found.accuracy)


@pytest.mark.parametrize("count", [1, 2, 3, FEWEST - 1])
def test_with_few_images_no_other_preprocessing_is_tried(count: int) -> None:
    found = check_on_clean(deployed(), columns(count, wrong=count))
    assert found.accuracy == 0
    assert found.images == count
    assert found.note == f"with fewer than {FEWEST} images, no other preprocessing or class order is tried"


@given(count=st.integers(1, 70), method=st.sampled_from(["finetune", "bn_adapt", "tent", "none"]))
@settings(max_examples=40, deadline=None)
def test_a_repair_takes_any_number_of_failures_from_two(count: int, method: str) -> None:
    given_images = columns(count, wrong=count)
    module = nn.Sequential(nn.BatchNorm2d(3), deployed().module).eval()
    failures = (given_images.images_NHWC, given_images.labels_N)

    def call() -> None:
        found = repair(module, failures, method=method, config=QUICK, mean=(0.5,) * 3, std=(0.25,) * 3)
        held_out = max(round(count * 0.2), 1)
        assert 0 <= found.validation_after <= 1
        assert found.validation_before == 0
        assert found.validation_after * held_out == pytest.approx(round(found.validation_after * held_out))
        assert any("validation has only" in note for note in found.notes) == (held_out < 20)

    if count == 1:
        with pytest.raises(DataError, match="give two or more"):
            call()
    else:
        call()

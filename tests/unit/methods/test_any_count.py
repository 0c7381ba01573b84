"""Test that methods, extractors and evaluation take any number of images, or state the number they need."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from metarepair.adaptation.meta_test import Start
from metarepair.adaptation.repair_data import RepairData, split_collected
from metarepair.config.load import parse_config
from metarepair.data.clean_images import CleanImages
from metarepair.evaluation.predictions import called, predict_all, predicted_on
from metarepair.features.extractors import build_extractor
from metarepair.methods import METHODS, settings_of
from metarepair.methods.base import MethodContext
from metarepair.methods.bn_adapt import adapt_statistics
from metarepair.methods.none import NoRepair
from metarepair.models.build import DeployedModel
from metarepair.repairs.stage import repair_fairly
from small import deployed_of, failures_of, pixels, small_net
from tasks.datasets import ArrayDataset
from tasks.errors import DataError, UserError
from tasks.records import Failures

NAMES = sorted(METHODS)
few = settings(max_examples=8, deadline=None, derandomize=True)


def deployed(*, flat: bool = False) -> DeployedModel:
    """A small DNN; with `flat`, its batch norm sees one value per channel, which has no variance over one image."""
    return deployed_of(small_net(flat=flat))


def failures(number: int) -> Failures:
    labels = np.random.default_rng(1).integers(3, size=number)
    return failures_of(labels, pixels(number), predicted_N=np.zeros(number, np.int64))


def clean_images(number: int) -> CleanImages:
    """Images labelled by the DNN itself, so that it is right on all."""
    images = pixels(number, 2)
    return CleanImages(images_NHWC=images, labels_N=deployed().logits(images).argmax(1).numpy())


def config(batch_size: int, shots: int = 1) -> Any:
    training = {"epochs": 1, "batch_size": batch_size, "rate": 0.01}
    return parse_config(
        {
            "name": "unit",
            "device": "cpu",
            "mining": {"experiences": ["fog"], "batch_size": batch_size},
            "task": {"shots": shots},
            "inner": {"steps": 1},
            "repair": {"episodes": 1, "tasks": 1, "rates": [0.01]},
            "methods": {
                "tent": {"epochs": 1, "batch_size": batch_size},
                "roid": {"epochs": 1, "batch_size": batch_size},
                "augmix": training,
                "deeprepair": training,
                "sensei": training | {"variants": 3, "keep": 2},
                "arachne": {"population": 5, "generations": 1},
                "archrepair": {"search": training | {"least_rate": 0.001}, "tuning": training},
                "apricot": training
                | {
                    "patience": 1,
                    "adjust_batch": batch_size,
                    "reduced": {"models": 2, "per_class": 1, "epochs": 1},
                },
            },
        }
    )


@lru_cache
def reduced_models(*, flat: bool) -> Path:
    """The reduced models of Apricot, trained once."""
    folder, whole = Path(mkdtemp()), config(4)
    labels = np.arange(9) % 3
    clean = CleanImages(images_NHWC=pixels(9), labels_N=labels)
    context = MethodContext(config=whole, seed=0, settings=settings_of(whole, "apricot"), prepared=folder)
    data = RepairData(target="snow", learn=failures(0), validation=failures(0), clean=clean)
    METHODS["apricot"].prepare(deployed(flat=flat), data, context)
    return folder


def repaired(name: str, data: RepairData, whole: Any, *, flat: bool = False) -> Any:
    dnn = deployed(flat=flat)
    start = Start(parameters=dict(dnn.module.named_parameters()), buffers=dict(dnn.module.named_buffers()))
    context = MethodContext(
        config=whole,
        seed=0,
        settings=settings_of(whole, name),
        load_meta=lambda: start,
        load_joint=lambda: start,
        load_merged=lambda: start,
        prepared=reduced_models(flat=flat) if name == "apricot" else None,
    )
    return repair_fairly(METHODS[name], dnn, data, context)


def data_of(number: int, num_clean: int, whole: Any) -> RepairData:
    return RepairData(
        **{**vars(split_collected(failures(number), whole, 0)), "clean": clean_images(num_clean)}
    )


@few
@given(number=st.integers(2, 70), num_clean=st.integers(4, 70), batch_size=st.integers(2, 8))
@pytest.mark.parametrize("name", NAMES)
def test_a_method_repairs_by_any_number_of_failures_and_clean_images(
    name: str, number: int, num_clean: int, batch_size: int
) -> None:
    if name == "archrepair":
        number = max(number, 3)  # two halves of at least one image each, and one for validation
    whole = config(batch_size)
    model = repaired(name, data_of(number, num_clean, whole), whole)
    assert model.first_not_finite() is None
    assert model.state().keys() >= deployed().module.state_dict().keys() or model.module is not None


@few
@given(number=st.integers(1, 6), num_clean=st.integers(1, 6), batch_size=st.integers(1, 3))
@pytest.mark.parametrize("name", NAMES)
def test_with_a_norm_of_one_value_an_image_few_images_are_enough_or_refused(
    name: str, number: int, num_clean: int, batch_size: int
) -> None:
    whole = config(batch_size)
    data = RepairData(
        target="snow", learn=failures(number), validation=failures(1), clean=clean_images(num_clean)
    )
    with suppress(UserError):
        assert repaired(name, data, whole, flat=True).first_not_finite() is None


@pytest.mark.parametrize("name", NAMES)
def test_one_failure_and_one_clean_image_are_enough_for_all_but_archrepair(name: str) -> None:
    whole = config(4)
    data = RepairData(target="snow", learn=failures(1), validation=failures(1), clean=clean_images(1))
    if name == "archrepair":
        with pytest.raises(DataError, match=r"there are 1 image\(s\) in D_collect and 1 clean one"):
            repaired(name, data, whole)
    else:
        assert repaired(name, data, whole).first_not_finite() is None


@few
@given(number=st.integers(1, 6), num_clean=st.integers(1, 25))
@example(number=1, num_clean=1)
def test_a_walk_with_clean_images_takes_any_number_of_them(number: int, num_clean: int) -> None:
    whole = config(4)
    whole = whole.model_copy(
        update={
            "task": whole.task.model_copy(update={"clean_support": 3}),
            "repair": whole.repair.model_copy(update={"clean_weight": 0.5}),
        }
    )
    data = RepairData(
        target="snow", learn=failures(number), validation=failures(1), clean=clean_images(num_clean)
    )
    assert repaired("finetune", data, whole).first_not_finite() is None


@pytest.mark.parametrize("name", ["bn_adapt", "tent"])
def test_one_image_without_a_variance_is_refused_with_the_remedy(name: str) -> None:
    data = RepairData(target="snow", learn=failures(1), validation=failures(1))
    says = rf"{name} used a batch of one image.*1 examples to learn from\. Collect more failures"
    with pytest.raises(DataError, match=says):
        repaired(name, data, config(4), flat=True)


@few
@given(number=st.integers(2, 70), batch_size=st.integers(2, 8))
@example(number=7, batch_size=3)  # the last batch would have one image
@example(number=2, batch_size=8)
def test_statistics_over_any_number_of_images_are_those_of_their_batches(
    number: int, batch_size: int
) -> None:
    dnn, images = deployed(flat=True), pixels(number)
    assert adapt_statistics(dnn, images, batch_size=batch_size)
    first = dnn.module[1]
    seen = dnn.module[0](dnn.normalise(images)).transpose(0, 1).flatten(1).double()
    assert torch.allclose(first.running_mean.double(), seen.mean(1), atol=1e-5)
    last = dnn.module[5]
    assert bool(last.running_var.isfinite().all())


def split(number: int) -> ArrayDataset:
    return ArrayDataset(
        name="unit",
        split="test",
        images_NHWC=pixels(number),
        labels_N=np.arange(number) % 3,
        image_ids_N=np.arange(number),
        classes=("a", "b", "c"),
    )


@few
@given(number=st.integers(1, 70), batch_size=st.integers(1, 8))
def test_predictions_of_any_number_of_images_are_those_of_each_alone(number: int, batch_size: int) -> None:
    dnn, test, whole = deployed(flat=True), split(number), config(batch_size)
    data = RepairData(target="snow", learn=failures(1), validation=failures(1))
    model = NoRepair().repair(dnn, data, MethodContext(config=whole, seed=0))
    rows = np.arange(number)
    found = predict_all(dnn, called(dnn, [model]), test.images, rows, batch_size=batch_size)
    alone = np.concatenate(
        [dnn.logits(test.images(rows[i : i + 1])).argmax(1).numpy() for i in range(number)]
    )
    assert found.classes.tolist() == [alone.tolist()] * 2
    given = failures(number)
    on_fail = predicted_on(given, dnn, [model], test.image_ids_N, {1: found})
    assert on_fail.shape == (1, number)


@lru_cache
def extractor_of(spec: str) -> Any:
    build = partial(build_extractor, mean=(0.5,) * 3, std=(0.25,) * 3, device=torch.device("cpu"))
    if spec == "deployed":
        return build(spec, weights=None, deployed=small_net(flat=True))
    weights = None
    if spec.startswith("timm:"):
        weights = Path(mkdtemp()) / "model.safetensors"
        save_file(timm.create_model(spec.removeprefix("timm:")).state_dict(), weights)
    return build(spec, weights=weights, deployed=None)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(number=st.integers(1, 9))
@example(number=1)
@example(number=4)  # the last chunk has one image
@pytest.mark.parametrize("spec", ["deployed", "timm:test_resnet", "efficientnet_lite0"])
def test_features_of_any_number_of_images_are_those_of_each_alone(spec: str, number: int) -> None:
    extractor, images = extractor_of(spec), pixels(number)
    alone = np.concatenate([extractor(images[i : i + 1]) for i in range(number)])
    assert np.allclose(extractor(images), alone, atol=1e-4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor, "_chunk", lambda *_: 3)
        assert np.allclose(extractor(images), alone, atol=1e-4)

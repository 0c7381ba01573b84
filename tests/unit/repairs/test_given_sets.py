"""Test that `repair()` prepares failures, clean and clean training images each by their own kind, and checks them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from metarepair import RepairConfig, Repaired, repair
from tasks.errors import ConfigError, DataError, WeightsError

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
NORMALISATION: dict[str, Any] = {"mean": MEAN, "std": STD}
QUICK = RepairConfig(repair={"episodes": 1, "tasks": 1}, task={"shots": 2}, inner={"steps": 1})


def prepared(images: np.ndarray) -> Tensor:
    shape = (1, -1, 1, 1)
    x_BCHW = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (x_BCHW - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)


class Darkest(nn.Module):
    """Returns the darkest quarter of the rows as the class, for images of any size and number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(-torch.ones(4)), nn.Parameter(torch.zeros(4))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        quarters_BK = x_BCHW.mean((1, 3)).unflatten(1, (4, -1)).mean(2)
        return quarters_BK * self.scale + self.shift


def images_of(labels: np.ndarray, height: int = 8) -> np.ndarray:
    rng = np.random.default_rng(len(labels))
    images = rng.integers(150, 256, (len(labels), height, 8, 3))
    for image, label in zip(images, labels, strict=True):
        image[label * height // 4 : (label + 1) * height // 4] //= 4
    return images.astype(np.uint8)


LABELS = np.arange(40) % 4
IMAGES = images_of(LABELS)
WRONG = (LABELS + 1) % 4  # the DNN's classes are LABELS
CLEAN = images_of(LABELS[:36])
CLEAN_LABELS = np.where(np.arange(36) % 9, LABELS[:36], WRONG[:36])  # eight of nine are right


def call(failures: Any = (IMAGES, WRONG), **options: Any) -> Repaired:
    return repair(options.pop("model", None) or Darkest(), failures, **({"config": QUICK} | options))


def test_the_clean_accuracy_does_not_depend_on_the_kind_of_each_set() -> None:
    pixels, floats = (IMAGES, WRONG), (prepared(IMAGES), WRONG)
    clean_pixels, clean_floats = (CLEAN, CLEAN_LABELS), (prepared(CLEAN), CLEAN_LABELS)
    far = RepairConfig(repair={"episodes": 1, "tasks": 1, "rates": [1.0]}, inner={"steps": 3})
    found = [
        call(pixels, clean=clean_pixels, config=far, **NORMALISATION),
        call(floats, clean=clean_floats, config=far),
        call(floats, clean=clean_pixels, config=far, **NORMALISATION),
        call(pixels, clean=clean_floats, config=far, **NORMALISATION),
    ]
    assert found[0].clean_before == pytest.approx(32 / 36)
    assert found[0].clean_after != found[0].clean_before
    for other in found[1:]:
        assert (other.clean_before, other.clean_after) == (found[0].clean_before, found[0].clean_after)
        assert other.validation_after == found[0].validation_after
        for name, tensor in found[0].module.state_dict().items():
            torch.testing.assert_close(other.module.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_dnn_that_normalises_itself_has_the_same_clean_accuracy_for_every_kind() -> None:
    # Floats here are in [0, 1]: the same pixels as uint8 need mean 0 and std 1.
    unit = (torch.from_numpy(CLEAN).permute(0, 3, 1, 2) / 255, CLEAN_LABELS)
    failures = (torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255, WRONG)
    identity: dict[str, Any] = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    assert call(failures, clean=(CLEAN, CLEAN_LABELS), **identity).clean_before == pytest.approx(32 / 36)
    assert call(failures, clean=unit).clean_before == pytest.approx(32 / 36)


@pytest.mark.parametrize("missing", ["mean", "std"])
def test_uint8_anywhere_needs_mean_and_std_and_is_named(missing: str) -> None:
    half = {k: v for k, v in NORMALISATION.items() if k != missing}
    floats, pixels = (prepared(IMAGES), WRONG), (IMAGES, WRONG)
    clean = (CLEAN, CLEAN_LABELS)
    for failures, named in ((floats, "clean came"), (pixels, "failures and clean came")):
        with pytest.raises(ConfigError, match=f"uint8 images need {missing}, and {named} as uint8"):
            call(failures, clean=clean, **half)
    with pytest.raises(ConfigError, match="was given, but the images are floats"):
        call(floats, clean=(prepared(CLEAN), CLEAN_LABELS), **NORMALISATION)
    with pytest.raises(ConfigError, match=r"pixels; failures came as floats\. Give both as uint8"):
        call(floats, clean_training=clean, **NORMALISATION)
    with pytest.raises(ConfigError, match=r"pixels; clean_training came as floats\. Give both as uint8"):
        call(pixels, clean_training=(prepared(CLEAN), CLEAN_LABELS), **NORMALISATION)


def test_clean_images_of_another_size_are_judged_where_the_dnn_takes_them() -> None:
    found = call(clean=(images_of(LABELS[:36], height=16), CLEAN_LABELS), **NORMALISATION)
    assert found.clean_before == pytest.approx(32 / 36)
    module = nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 3, 4))
    with pytest.raises(
        WeightsError,
        match=r"cannot take a batch of images of 16×8 pixels with 3 channels, such as those of clean",
    ):
        call(model=module, clean=(images_of(LABELS[:36], height=16), CLEAN_LABELS), **NORMALISATION)


@pytest.mark.parametrize("kind", ["failures", "clean"])
def test_images_of_other_channels_are_refused_by_the_name_of_their_set(kind: str) -> None:
    sets: dict[str, Any] = {"failures": (IMAGES, WRONG), "clean": (CLEAN, CLEAN_LABELS)}
    images, labels = sets[kind]
    sets[kind] = (images[..., :1], labels)
    with pytest.raises(ConfigError, match=f"has 3 numbers; the images of {kind} have 1 channel"):
        call(sets["failures"], clean=sets["clean"], **NORMALISATION)
    one = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten())
    with pytest.raises(WeightsError, match=r"8×8 pixels with 3 channels, such as those of failures"):
        call(model=one, **NORMALISATION)


@pytest.mark.parametrize("kind", ["failures", "clean", "clean_training"])
@pytest.mark.parametrize("label", [-100, 4])
def test_a_label_that_is_no_class_is_refused_in_every_set(kind: str, label: int) -> None:
    labels = np.where(np.arange(40) == 7, label, WRONG)
    sets: dict[str, Any] = {
        "failures": (IMAGES, WRONG),
        "clean": (CLEAN, CLEAN_LABELS),
        "clean_training": (IMAGES, LABELS),
    } | {kind: (IMAGES, labels)}
    with pytest.raises(DataError, match=rf"^{kind}: the label of image 7 is {label}; Darkest has 4 classes"):
        call(sets.pop("failures"), **sets, **NORMALISATION)


def test_grey_pil_images_are_repaired_as_grey_arrays_are() -> None:
    grey = IMAGES[..., 0]
    options: dict[str, Any] = {"mean": (0.5,), "std": (0.25,)}
    arrays = call((grey, WRONG), **options)
    pictures = call([(Image.fromarray(g), int(w)) for g, w in zip(grey, WRONG, strict=True)], **options)
    assert pictures.validation_after == arrays.validation_after
    for name, tensor in arrays.module.state_dict().items():
        assert torch.equal(pictures.module.state_dict()[name], tensor)


def test_correctly_classified_images_are_counted_and_refused_if_there_are_no_others() -> None:
    with pytest.raises(
        DataError, match=r"None of the 40 images of failures is a failure: the model classifies all"
    ):
        call((IMAGES, LABELS), **NORMALISATION)
    found = call((IMAGES, np.where(np.arange(40) < 12, LABELS, WRONG)), **NORMALISATION)
    assert (
        "12 of the 40 given images are not failures: the model already classifies them correctly"
        in found.notes
    )
    assert not any("not failures" in note for note in call(**NORMALISATION).notes)


def test_few_failures_give_a_note_with_the_weight_of_each() -> None:
    found = call((IMAGES[:6], WRONG[:6]), **NORMALISATION)
    assert found.notes[0] == "validation has only 1 of the 6 images: its accuracy moves in steps of 100%"
    assert found.notes[1] == (
        "3 of the 4 classes to learn from have fewer than task.shots=2 images (the smallest has 1): a support repeats "
        "them"
    )
    adapted = call((IMAGES[:6], WRONG[:6]), method="tent", model=Normed(), **NORMALISATION)
    assert not any("task.shots" in note for note in adapted.notes)  # tent has no supports


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.darkest = nn.BatchNorm2d(3), Darkest()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.darkest(self.norm(x_BCHW))
        return logits_BK


def test_doubts_about_the_clean_images_become_a_note_of_the_repair() -> None:
    found = call(clean=(CLEAN[:9], (CLEAN_LABELS[:9] + 1) % 4), **NORMALISATION)
    says = "of the clean images are classified correctly; with fewer than 32 images, no other preprocessing"
    assert any(says in note for note in found.notes)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"repair": {"ratess": [0.1]}}, "no setting 'repair.ratess'; did you mean 'repair.rates'"),
        ({"reapir": {}}, "no setting 'reapir'; did you mean 'repair'"),
        ({"repair": {"rates": ["a"]}}, r"repair\.rates\.0='a': it must be a number"),
        ({"seed": -1}, "seed=-1: it must be at least 0"),
        ({"task": {"shots": 1.5}}, r"task\.shots=1\.5: it must be a whole number"),
    ],
)
def test_a_misspelt_setting_in_python_is_refused_with_the_message_for_yaml(
    settings: dict[str, Any], says: str
) -> None:
    for make in (lambda: RepairConfig(**settings), lambda: RepairConfig.model_validate(settings)):
        with pytest.raises(ConfigError, match=rf"{says}.*\(in RepairConfig\)"):
            make()


def test_a_value_in_place_of_a_group_of_settings_is_refused_in_python() -> None:
    with pytest.raises(ConfigError, match=r"it must be a group of settings.*\(in RepairConfig\)"):
        RepairConfig.model_validate([1])

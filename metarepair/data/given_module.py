"""Makes a deployed DNN from a caller's module, and checks it on every set of images that the caller passes in.

uint8 images are normalised by the caller's mean and std; floats go into the DNN unchanged. Each set may be of either
kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from metarepair.data.given_images import GivenImages, collect_images
from metarepair.data.given_labels import check_range
from metarepair.data.image_files import named_classes
from metarepair.models.build import DeployedModel
from metarepair.models.clean_check import IN_CALL, check_output, logits_of
from metarepair.models.preprocessing import Colour
from metarepair.models.wrappers import copied, unwrapped
from tasks.datasets.normalisation import check_mean, check_std
from tasks.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class GivenModule:
    """What a caller passed in: the deployed DNN, which takes uint8 pixels (see `fed`), and the sets of images.

    classes: names of the classes; None if the caller gave none. normalised: whether the caller gave mean and std.
    """

    deployed: DeployedModel
    failures: GivenImages
    clean: GivenImages | None
    training: GivenImages | None
    notes: tuple[str, ...]
    classes: tuple[str, ...] | None
    normalised: bool

    @property
    def preprocessing(self) -> dict[str, Any]:
        """That of the DNN; mean and std are None if the caller gave none, as all images are its own input."""
        told = self.deployed.preprocessing
        return told if self.normalised else {**told, "mean": None, "std": None}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, or else their numbers."""
        return self.classes or tuple(map(str, range(self.deployed.num_classes)))


def collect_given(
    model: Any,
    failures: Any,
    *,
    clean: Any,
    clean_training: Any,
    classes: Any,
    mean: Any,
    std: Any,
    image_size: int | None,
) -> GivenModule:
    """Copy the module, read the images, and check them together. Raises a UserError that names what is wrong."""
    _check_module(model)
    given_as, model = type(model).__name__, unwrapped(model)
    mean, std = _colour("mean", mean), _colour("std", std)
    channels = len(mean or std or (0, 0, 0))
    names = named_classes(classes, image_size=image_size, clean=clean, clean_training=clean_training)
    given = {"failures": failures, "clean": clean, "clean_training": clean_training}
    sets = {
        name: collect_images(images, name=name, channels=channels, classes=names, image_size=image_size)
        for name, images in given.items()
        if images is not None or name == "failures"
    }
    training = sets.get("clean_training")
    if training is not None:
        _check_training(sets["failures"], training)
    notes = [note for images in sets.values() for note in images.notes]
    if type(model).__name__ != given_as:
        notes.append(f"the {type(model).__name__} inside the given {given_as} was repaired")
    return GivenModule(
        deployed=_deploy(model, tuple(sets.values()), classes=names, mean=mean, std=std),
        failures=sets["failures"],
        clean=sets.get("clean"),
        training=training,
        notes=tuple(notes),
        classes=names,
        normalised=mean is not None,
    )


def deploy_given(
    model: Any, images: GivenImages, *, classes: tuple[str, ...] | None, mean: Any, std: Any
) -> DeployedModel:
    """Deploy a copy of the module, and check that it takes these images and has their classes.

    Raises a UserError that names what is wrong.
    """
    _check_module(model)
    mean, std = _colour("mean", mean), _colour("std", std)
    return _deploy(unwrapped(model), (images,), classes=classes, mean=mean, std=std)


def fed(deployed: DeployedModel, given: GivenImages) -> DeployedModel:
    """`deployed` with the normalisation for these images: its mean and std for uint8, none for floats."""
    if not given.prepared:
        return deployed
    unchanged: Any = {"mean": (0.0,) * given.channels, "std": (1 / 255,) * given.channels}
    return replace(deployed, **unchanged)


def _check_module(model: Any) -> None:
    """Raise ConfigError unless `model` is a module with parameters."""
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model is {type(model).__name__}; give a torch.nn.Module that maps images to logits."
        )
    if next(model.parameters(), None) is None:
        raise ConfigError(f"{type(model).__name__} has no parameters: nothing can be repaired.")


def _colour(name: str, values: Any) -> tuple[float, ...] | None:
    """The caller's mean or std as floats; None if it was not given. Raises ConfigError for anything but numbers."""
    if values is None:
        return None
    try:
        if any(isinstance(value, bool) for value in values):
            raise TypeError
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name}={values!r} is not one number for each channel, such as (0.5,) or (0.485, 0.456, 0.406)."
        ) from error
    if not numbers:
        raise ConfigError(f"{name} has no numbers; give one for each channel, or leave it out for floats.")
    (check_mean if name == "mean" else check_std)(name, numbers)
    return numbers


def _deploy(
    model: nn.Module,
    sets: Sequence[GivenImages],
    *,
    classes: tuple[str, ...] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> DeployedModel:
    """Deploy a copy of the module, and check that it takes every set of images and has all of their classes.

    Raises a UserError that names the first set that does not fit.
    """
    _check_normalisation(sets, mean, std)
    channels = sets[0].channels
    deployed = DeployedModel(
        name=type(model).__name__,
        module=copied(model).eval(),
        num_classes=0,
        mean=cast("Colour", mean or (0.0,) * channels),
        std=cast("Colour", std or (1 / 255,) * channels),
    )
    count = logits_of(fed(deployed, sets[0]), sets[0].images_NHWC[:2], IN_CALL, sets[0].name).shape[1]
    if classes is not None and len(classes) != count:
        raise ConfigError(
            f"classes has {len(classes)} names, and the DNN has {count} outputs. Give one for each, in their order. "
            "Without classes, they are the names in the folder or table of clean images."
        )
    deployed = replace(deployed, num_classes=count)
    for given in sets:
        check_output(fed(deployed, given), given.images_NHWC[:2], IN_CALL, given.name)
        check_range(given.labels_N, name=given.name, module=deployed.name, num_classes=count)
    return deployed


def _check_normalisation(
    sets: Sequence[GivenImages], mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> None:
    pixels = [given for given in sets if not given.prepared]
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and not pixels:
            raise ConfigError(
                f"{name} was given, but the images are floats, which go into the DNN unchanged. Leave mean and std "
                "out, or give uint8 pixels."
            )
        if values is None and pixels:
            raise ConfigError(
                f"uint8 images need {name}, and {' and '.join(given.name for given in pixels)} came as uint8. Give the "
                "DNN's own values, for pixels in [0, 1] (timm states them in model.pretrained_cfg), or mean=(0, 0, 0), "
                "std=(1, 1, 1) for a DNN that takes pixels in [0, 1]."
            )
        for given in pixels:
            if values is not None and len(values) != given.channels:
                numbers = f"{len(values)} number{'s' if len(values) > 1 else ''}"
                raise ConfigError(
                    f"{name}={values} has {numbers}; the images of {given.name} have {given.channels} "
                    f"channel{'s' if given.channels > 1 else ''}. Give one number for each channel."
                )


def _check_training(failures: GivenImages, training: GivenImages) -> None:
    floats = [images.name for images in (failures, training) if images.prepared]
    if floats:
        raise ConfigError(
            "clean_training and failures must both be uint8 pixels, as methods that learn from clean images change "
            f"pixels; {' and '.join(floats)} came as floats. Give both as uint8, with mean and std."
        )
    if training.images_NHWC.shape[1:] != failures.images_NHWC.shape[1:]:
        raise DataError(
            f"clean_training has images of shape {training.images_NHWC.shape[1:]}, failures of shape "
            f"{failures.images_NHWC.shape[1:]}. Give both in one size."
        )

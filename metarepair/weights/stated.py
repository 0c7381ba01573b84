"""Read what a hub states of a model: its classes, the normalisation of its images, and their size. Imports no torch.

torchvision states it in its own code, so that for its names alone torch is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from metarepair.weights.hub import (
    CONFIG,
    TIMM_HUB,
    TORCHVISION,
    TRANSFORMERS,
    HubName,
    hub_json,
    read_hub_name,
)
from tasks.datasets.base import Colour
from tasks.datasets.normalisation import check_mean, check_std
from tasks.errors import ConfigError

PROCESSOR = "preprocessor_config.json"
PACKAGE = "transformers"
PLACEHOLDER = "LABEL_"  # with a number: what transformers calls a class without a name
NOT_BUILDING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
UNUSUAL = (
    "do_flip_channel_order",
    "rescale_offset",
    "include_top",
)  # steps that mean and std do not describe


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What a hub states of a model; None where it says nothing.

    mean, std: of pixels in [0, 1]. input_size: side in pixels of the square images. classes: in the order of the
    logits.
    """

    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    mean: Colour | None = None
    std: Colour | None = None
    input_size: int | None = None


def stated_of(name: str, weights: str) -> Stated | None:
    """What the hub of model.name, or torchvision's of model.weights, states; None if neither is of a hub.

    Raises ConfigError or WeightsError if the hub's files are missing, damaged, or of a model of another kind.
    """
    if name.startswith(TIMM_HUB):
        return _of_timm(read_hub_name(name))
    if name.startswith(TRANSFORMERS):
        return _of_transformers(read_hub_name(name))
    if weights.startswith(TORCHVISION):
        from metarepair.weights.torchvision_files import torchvision_facts

        return Stated(**torchvision_facts(weights))
    return None


def check_normalisation(name: str, stated: Mapping[str, Any]) -> None:
    """Raise ConfigError, which names the hub's file, if a stated mean or std is not of pixels in [0, 1]."""
    file = PROCESSOR if name.startswith(TRANSFORMERS) else CONFIG
    try:
        check_mean("mean", stated.get("mean", ()))
        check_std("std", stated.get("std", ()))
    except ConfigError as error:
        raise ConfigError(
            f"{name}: by its {file}, {error} Give model.mean and model.std, or a revision that states others."
        ) from error


def timm_config(name: HubName) -> dict[str, Any]:
    """The `config.json` of a timm model. Raises ConfigError if it is of another library, or builds no model."""
    content = hub_json(name, CONFIG)
    if not isinstance(content.get("architecture"), str):
        other = f"hf:{name.repository}@{name.revision}"
        hint = f" It is one of transformers: give {other}." if "model_type" in content else ""
        raise ConfigError(f"{name} is not a model of timm: its {CONFIG} names no architecture.{hint}")
    refused = [key for key in _mapping(content.get("model_args")) if key in NOT_BUILDING]
    if refused:
        raise ConfigError(
            f"{name}: the model_args of its {CONFIG} have {refused[0]}, which builds no model but loads files. Give a "
            "revision without it."
        )
    return content


def transformers_config(name: HubName) -> dict[str, Any]:
    """The `config.json` of a classifier of transformers. Raises ConfigError if it is of another kind."""
    if find_spec(PACKAGE) is None:
        raise ConfigError(f"{name} needs the package {PACKAGE}: pip install 'metarepair[{PACKAGE}]'")
    content = hub_json(name, CONFIG)
    if not isinstance(content.get("model_type"), str):
        other = f"hf-hub:{name.repository}@{name.revision}"
        hint = f" It is one of timm: give {other}." if "architecture" in content else ""
        raise ConfigError(f"{name} is not a model of transformers: its {CONFIG} names no model_type.{hint}")
    problem = content.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise ConfigError(
            f"{name} is made for {problem}, and a repair needs a classifier that gives each image one class."
        )
    return content


def plain_name(name: str) -> str:
    """A class name as it is compared with another: without case, underscores and outer spaces."""
    return name.casefold().replace("_", " ").strip()


def _of_timm(name: HubName) -> Stated:
    content = timm_config(name)
    # Until 2023 timm wrote what is `pretrained_cfg` today at the top.
    prepared = _mapping(content.get("pretrained_cfg", content))
    names = content.get("label_names", prepared.get("label_names"))
    channels, *sides = _numbers(prepared.get("input_size")) or (3,)
    _check_channels(name, channels)
    return Stated(
        num_classes=_count(content.get("num_classes", prepared.get("num_classes"))),
        classes=_names(names),
        mean=_colour(prepared.get("mean")),
        std=_colour(prepared.get("std")),
        input_size=_side(name, sides),
    )


def _of_transformers(name: HubName) -> Stated:
    content, processor = transformers_config(name), hub_json(name, PROCESSOR)
    _check_channels(name, content.get("num_channels", 3))
    names = _names(content.get("id2label"))
    mean, std = _normalisation(name, processor)
    return Stated(
        # A model with transformers' default, two classes without names, has no id2label.
        num_classes=len(_mapping(content.get("id2label"))) or 2,
        classes=None if names and all(one.startswith(PLACEHOLDER) for one in names) else names,
        mean=mean,
        std=std,
        input_size=_processed_side(name, processor),
    )


def _normalisation(name: HubName, processor: Mapping[str, Any]) -> tuple[Colour | None, Colour | None]:
    """Mean and std of pixels in [0, 1] that do what the processor does: x × 255 × factor, less mean, over std."""
    unusual = [key for key in UNUSUAL if processor.get(key)]
    if unusual:
        raise ConfigError(
            f"{name}: its processor ({PROCESSOR}) sets {unusual[0]}, which mean and standard deviation of RGB images "
            "do not describe. Write a module that does this step, and give it as module:FACTORY."
        )
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    scale = 255 * factor if isinstance(factor, int | float) and math.isfinite(factor) and factor > 0 else 1.0
    normalises = processor.get("do_normalize", True)
    mean = _colour(processor.get("image_mean")) if normalises else (0.0, 0.0, 0.0)
    std = _colour(processor.get("image_std")) if normalises else (1.0, 1.0, 1.0)
    return _scaled(mean, scale), _scaled(std, scale)


def _scaled(colour: Colour | None, scale: float) -> Colour | None:
    if colour is None or math.isclose(scale, 1):
        return colour
    return colour[0] / scale, colour[1] / scale, colour[2] / scale


def _processed_side(name: HubName, processor: Mapping[str, Any]) -> int | None:
    """The side of the images that a processor makes: of its crop, or else of its resize."""
    crops = processor.get("do_center_crop") and processor.get("crop_size") is not None
    size = processor.get("crop_size" if crops else "size")
    if isinstance(size, Mapping):
        size = [size["shortest_edge"]] if "shortest_edge" in size else [size.get("height"), size.get("width")]
    elif isinstance(size, int):
        size = [size]
    return _side(name, _numbers(size) or ())


def _side(name: HubName, sides: tuple[int, ...] | list[int]) -> int | None:
    if len(set(sides)) > 1:
        raise ConfigError(
            f"{name} takes images of {' × '.join(map(str, sides))} pixels, and only square ones are supported."
        )
    return sides[0] if sides else None


def _check_channels(name: HubName, channels: object) -> None:
    if channels != 3:
        raise ConfigError(f"{name} takes images of {channels} channels, and only RGB is supported.")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _numbers(value: object) -> tuple[int, ...] | None:
    """Whole numbers above 0, None for anything else."""
    if not isinstance(value, list | tuple) or not value or not all(_count(one) for one in value):
        return None
    return tuple(value)


def _colour(value: object) -> Colour | None:
    """Three finite numbers, None for anything else."""
    if not isinstance(value, list | tuple) or len(value) != 3:
        return None
    if not all(type(one) in (int, float) and math.isfinite(one) for one in value):
        return None
    return float(value[0]), float(value[1]), float(value[2])


def _names(value: object) -> tuple[str, ...] | None:
    """Class names by number, from a list or from a mapping of all numbers from 0; None for anything else."""
    if isinstance(value, Mapping):
        value = [value.get(str(number)) for number in range(len(value))]
    if not isinstance(value, list | tuple) or not value or not all(isinstance(one, str) for one in value):
        return None
    return tuple(value)

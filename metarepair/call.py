"""A torch.nn.Module and images that it fails on in, a repaired copy of it out: the repair of a run as one call.

from metarepair import repair
repaired = repair(model, (images, labels), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
repaired.module, repaired.validation_before, repaired.validation_after
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from metarepair.clean_check import check_on_clean, check_output
from metarepair.clean_images import CleanImages
from metarepair.given_images import GivenImages, collect_images
from metarepair.meta_test import RepairData, Start, accuracy_on, load_start, repair_data
from metarepair.methods import Method, MethodContext, get_method, repair_fairly, settings_of
from metarepair.models.build import DeployedModel
from metarepair.models.preprocessing import Colour
from metarepair.parts import adapted_names
from metarepair.repair_config import RepairConfig
from metarepair.train_config import InnerConfig
from metarepair.vectors import State
from tasks.errors import ConfigError, DataError, DivergedError
from tasks.manifest import require_manifest
from tasks.records import Failures
from tasks.storage import place

NAME_A_START = "Name a finished meta/<target>/ folder of a run."


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """A repaired DNN, and what it took. Accuracies are fractions.

    `module` is a new one, in evaluation mode, on the given one's device. Validation is the part of the failures that
    nothing learned from: it chose `rate` and `episode` (from 0), so judge the repair on other images. `clean_before`
    and `clean_after` are None where no clean images were given.
    """

    module: nn.Module
    method: str
    validation_before: float
    validation_after: float
    rate: float | None
    episode: int | None
    images_seen: int
    gradient_steps: int
    clean_before: float | None
    clean_after: float | None
    notes: tuple[str, ...]


def repair(
    model: nn.Module,
    failures: Any,
    *,
    method: str | None = None,
    start: str | Path | None = None,
    config: RepairConfig | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    clean: Any = None,
    clean_training: Any = None,
) -> Repaired:
    """Repairs a copy of `model`, a classifier of images, from images that it fails on; `model` stays as it is.

    failures, clean: see `metarepair.given_images.collect_images`; labels are the right ones. mean, std: of pixels in
    [0, 1] by channel, as the DNN was trained; needed for uint8 images, not taken for floats. method: finetune,
    bn_adapt, any other of docs/methods.md that prepares nothing, or metarepair from `start`, the folder meta/<target>/
    of a run with this DNN (its inner loop is used unless `config` names another). clean: labelled images that it should
    get right, to see what a repair breaks. clean_training: others, uint8, for methods that learn from clean images too.

    Raises a tasks.errors.UserError that says what is wrong.
    """
    chosen = get_method(method or ("finetune" if start is None else "metarepair"))
    _check_start(chosen, start)
    given = collect_images(failures, name="failures")
    deployed = _deployed(model, given, mean, std)
    config = config or _config_of(start)
    adapted_names(deployed.module, config.inner.parts)
    data, notes = _repair_data(deployed, given, config)
    if clean_training is not None:
        data = replace(data, clean=_clean_images(given, clean_training))
    others = None if clean is None else collect_images(clean, name="clean")
    if others is not None:
        check_on_clean(deployed, others)

    def load_meta() -> Start:
        assert start is not None  # checked with the method
        return load_start(place(str(start)), deployed.module, config, remedy=NAME_A_START)

    context = MethodContext(
        config=config,
        seed=0,
        load_meta=load_meta,
        settings=settings_of(config, chosen.name),
    )
    before = accuracy_on(deployed, *_own_state(deployed.module), data.validation)
    chosen.check(deployed.module, context.settings)
    found = repair_fairly(chosen, deployed, data, context)
    bad = found.first_not_finite()
    if bad is not None:
        raise DivergedError(
            f"the repair by {found.method} diverged, {bad} is not finite. Lower the rates "
            "(config=RepairConfig(repair={'rates': [0.003]}))."
        )
    module = found.fill(deployed.module)
    after = replace(deployed, module=module)
    return Repaired(
        module=module,
        method=chosen.name,
        validation_before=before,
        validation_after=accuracy_on(
            found.architecture_of(deployed), found.parameters, found.buffers, data.validation
        ),
        rate=found.rate,
        episode=found.episode,
        images_seen=found.images_seen,
        gradient_steps=found.gradient_steps,
        clean_before=None if others is None else _accuracy(deployed, others),
        clean_after=None if others is None else _accuracy(after, others),
        notes=notes + found.notes,
    )


def _clean_images(given: GivenImages, clean_training: Any) -> CleanImages:
    found = collect_images(clean_training, name="clean_training")
    if given.prepared or found.prepared:
        raise ConfigError(
            "clean_training needs uint8 pixels there and in failures: methods that learn from clean images change "
            "pixels. Give both as uint8, with mean and std."
        )
    if found.images_NHWC.shape[1:] != given.images_NHWC.shape[1:]:
        raise DataError(
            f"clean_training has images of {found.images_NHWC.shape[1:]}, failures of "
            f"{given.images_NHWC.shape[1:]}. Give both in one size."
        )
    return CleanImages(images_NHWC_u8=found.images_NHWC, labels_N=found.labels_N)


def _check_start(method: Method, start: str | Path | None) -> None:
    if method.prepares:
        raise ConfigError(
            f"method={method.name!r} prepares DNNs before any repair, which a call does not. Use it in a comparison: "
            "metarepair compare."
        )
    if method.name == "metarepair" and start is None:
        raise ConfigError(
            "method='metarepair' needs start, the folder meta/<target>/ that `metarepair train` made for this DNN. "
            "Without one, use method='finetune' or 'bn_adapt'."
        )
    if method.name != "metarepair" and start is not None:
        raise ConfigError(
            f"start={str(start)!r} is for method='metarepair'; {method.name} starts from the DNN itself."
        )


def _config_of(start: str | Path | None) -> RepairConfig:
    """The defaults; with a start, its own inner loop and number of shots, which it was trained for."""
    if start is None:
        return RepairConfig()
    folder = place(str(start))
    manifest = require_manifest(folder, NAME_A_START)
    if not {"inner", "task"} <= manifest.config.keys():
        raise ConfigError(f"{folder} is no meta/<target>/ folder of a run, but of {manifest.stage!r}.")
    inner = InnerConfig.model_validate(manifest.config["inner"])
    return RepairConfig.model_validate(
        {"inner": inner, "task": manifest.config["task"], "repair": {"rates": (inner.rate,)}}
    )


def _deployed(
    model: nn.Module, given: GivenImages, mean: Sequence[float] | None, std: Sequence[float] | None
) -> DeployedModel:
    """A copy of the module with its preprocessing, checked on two of the images."""
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model is {type(model).__name__}; give a torch.nn.Module that maps images to logits."
        )
    if next(model.parameters(), None) is None:
        raise ConfigError(f"{type(model).__name__} has no parameters: nothing can be repaired.")
    channels = given.images_NHWC.shape[3]
    found = DeployedModel(
        name=type(model).__name__,
        module=copy.deepcopy(model).eval(),
        num_classes=0,
        mean=cast("Colour", _channel_values("mean", mean, given, 0.0)),
        std=cast("Colour", _channel_values("std", std, given, 1 / 255)),
    )
    assert len(found.mean) == len(found.std) == channels
    if min(found.std) <= 0:
        raise ConfigError(f"std={tuple(found.std)} must be above 0: the deviation of pixels in [0, 1].")
    with torch.inference_mode():
        logits = _try(found, given.images_NHWC[:2])
    found = replace(found, num_classes=logits)
    check_output(found, given.images_NHWC[:2])
    outside = np.flatnonzero((given.labels_N < 0) | (given.labels_N >= logits))
    if len(outside):
        raise DataError(
            f"{given.name}: the label of image {outside[0]} is {given.labels_N[outside[0]]}; {found.name} has {logits} "
            f"classes, 0..{logits - 1} ({len(outside)} such labels)."
        )
    return found


def _try(deployed: DeployedModel, images_BHWC: np.ndarray) -> int:
    """The number of logits; 0 where there are none, which `check_output` then explains."""
    try:
        logits = deployed.module(deployed.normalise(images_BHWC))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        return 0
    return int(logits.shape[1]) if isinstance(logits, torch.Tensor) and logits.ndim == 2 else 0


def _channel_values(
    name: str, values: Sequence[float] | None, given: GivenImages, prepared: float
) -> tuple[float, ...]:
    channels: int = given.images_NHWC.shape[3]
    if given.prepared:
        if values is not None:
            raise ConfigError(
                f"{name} was given, but the images are floats, which are taken as the DNN's own input. Leave mean and "
                "std out, or give uint8 pixels."
            )
        return (prepared,) * channels
    if values is None:
        raise ConfigError(
            f"uint8 images need {name}: the DNN's own, of pixels in [0, 1] (timm states it in model.pretrained_cfg); "
            "mean=(0, 0, 0), std=(1, 1, 1) for a DNN that takes pixels in [0, 1]."
        )
    if len(values) != channels:
        raise ConfigError(
            f"{name}={tuple(values)} has {len(values)} numbers; the images have {channels} channels."
        )
    return tuple(float(value) for value in values)


def _repair_data(
    deployed: DeployedModel, given: GivenImages, config: RepairConfig
) -> tuple[RepairData, tuple[str, ...]]:
    predicted = deployed.logits(given.images_NHWC).argmax(1).numpy()
    right = int((predicted == given.labels_N).sum())
    notes = (f"{right} of the {len(given)} failures are none: the DNN has them right",) if right else ()
    failures = Failures(
        corruption="failures",
        image_ids_N=given.image_ids_N,
        severities_N=np.zeros(len(given), np.int64),
        labels_N=given.labels_N,
        predicted_N=predicted,
        images_NHWC_u8=given.images_NHWC,
    )
    data = repair_data(failures, config, seed=0)
    return data, notes


def _own_state(module: nn.Module) -> tuple[State, State]:
    return (
        {k: v.detach() for k, v in module.named_parameters()},
        {k: v.detach() for k, v in module.named_buffers()},
    )


def _accuracy(deployed: DeployedModel, data: GivenImages) -> float:
    predicted = deployed.logits(data.images_NHWC).argmax(1).numpy()
    return float((predicted == data.labels_N).mean())

"""Repairs a torch.nn.Module from images that it fails on: the repair of a run as one call.

from metarepair import repair
repaired = repair(model, (images, labels), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
repaired.module, repaired.validation_before, repaired.validation_after
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from metarepair.adaptation.accuracy import accuracy_on
from metarepair.adaptation.meta_test import Start
from metarepair.adaptation.repair_data import RepairData, split_collected
from metarepair.config.repair import RepairConfig
from metarepair.config.run import RepairSettings
from metarepair.data.clean_images import CleanImages
from metarepair.data.given_images import GivenImages
from metarepair.data.given_module import Given, collect_given, fed
from metarepair.engine.adapted import adapted_names
from metarepair.engine.vectors import State
from metarepair.meta_training.theta_meta import load_start
from metarepair.methods import (
    Method,
    MethodContext,
    check_method_settings,
    get_method,
    settings_of,
)
from metarepair.models.build import DeployedModel
from metarepair.models.clean_check import IN_CALL, check_on_clean
from metarepair.probing.needs import IMAGES, probe_repair
from metarepair.repairs.stage import repair_fairly
from tasks.errors import ConfigError, DataError, DivergedError
from tasks.records import Failures
from tasks.storage.manifest import require_manifest
from tasks.storage.paths import place

NAME_A_START = "Name a finished meta/<target>/ folder of a run."
FEW = 20  # with fewer images, an accuracy on validation moves in steps of more than five points


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

    failures, clean: see `metarepair.data.given_images.collect_images`; labels are the right ones. mean, std: of
    pixels in [0, 1] by channel, as the DNN was trained; needed for uint8 images, not for floats, which are the DNN's
    own input.
    Each of failures and clean may be either. method: finetune, bn_adapt, any other of docs/methods.md that prepares
    nothing, or metarepair from `start`, the folder meta/<target>/ of a run with this DNN (its inner loop is used unless
    `config` names another). clean: labelled images that it should get right, to see what a repair breaks.
    clean_training: others, uint8 as failures are then, for methods that learn from clean images too.

    Raises a tasks.errors.UserError that says what is wrong.
    """
    chosen = get_method(method or ("finetune" if start is None else "metarepair"))
    _check_start(chosen, start)
    given = collect_given(model, failures, clean=clean, clean_training=clean_training, mean=mean, std=std)
    deployed, clean_images = fed(given.deployed, given.failures), given.clean
    config = _config_of(start) if config is None else _checked(config)
    adapted_names(deployed.module, config.inner.parts)
    data, notes = _repair_data(deployed, given, config, chosen)
    notes = given.notes + notes
    probe_repair(chosen, deployed, given.failures.images_NHWC[:IMAGES], config)
    if clean_images is not None:
        notes += _clean_note(fed(given.deployed, clean_images), clean_images)

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
    after = replace(given.deployed, module=module)
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
        clean_before=None if clean_images is None else _accuracy(given.deployed, clean_images),
        clean_after=None if clean_images is None else _accuracy(after, clean_images),
        notes=notes + found.notes,
    )


def _checked(config: RepairConfig) -> RepairConfig:
    if not isinstance(config, RepairConfig):
        raise ConfigError(
            f"config is {type(config).__name__}; give RepairConfig(repair={{'rates': [0.01]}}), or leave it out."
        )
    check_method_settings(config)
    return config


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
    found = RepairConfig.model_validate({key: manifest.config[key] for key in ("inner", "task")})
    return found.model_copy(update={"repair": RepairSettings(rates=(found.inner.rate,))})


def _repair_data(
    deployed: DeployedModel, given: Given, config: RepairConfig, method: Method
) -> tuple[RepairData, tuple[str, ...]]:
    """What a method may see, and what is to be told of it. Raises DataError for too few failures, or none."""
    failures, training = given.failures, given.training
    if len(np.unique(failures.image_ids_N)) < 2:
        raise DataError(
            "failures has one image. A repair learns from some images and is chosen on others: give two or more."
        )
    predicted = deployed.logits(failures.images_NHWC).argmax(1).numpy()
    right = int((predicted == failures.labels_N).sum())
    if right == len(failures):
        raise DataError(
            f"None of the {right} images of failures is a failure: the model classifies all of them correctly. "
            "Give images that it gets wrong, with their right labels."
        )
    collect = Failures(
        corruption="failures",
        image_ids_N=failures.image_ids_N,
        severities_N=np.zeros(len(failures), np.int64),
        labels_N=failures.labels_N,
        predicted_N=predicted,
        images_NHWC_u8=failures.images_NHWC,
    )
    data = split_collected(collect, config, seed=0)
    if training is not None:
        clean = CleanImages(images_NHWC_u8=training.images_NHWC, labels_N=training.labels_N)
        data = replace(data, clean=clean)
    return data, _notes(data, right, config.task.shots if method.walks else 0)


def _notes(data: RepairData, right: int, shots: int) -> tuple[str, ...]:
    """What is to be told of failures that are none, and of few of them; `shots` is 0 for a method that takes all."""
    notes = []
    validation, learn = len(data.validation), len(data.learn)
    if right:
        notes.append(
            f"{right} of the {learn + validation} given images are not failures: the model already classifies them "
            "correctly"
        )
    if validation < FEW:
        notes.append(
            f"validation has only {validation} of the {learn + validation} images: its accuracy moves in steps of "
            f"{1 / validation:.0%}"
        )
    counts = np.bincount(data.learn.labels_N)
    counts = counts[counts > 0]
    if counts.min() < shots:
        notes.append(
            f"{(counts < shots).sum()} of the {len(counts)} classes to learn from have fewer than task.shots={shots} "
            f"images (the fewest {counts.min()}): a support repeats them"
        )
    return tuple(notes)


def _clean_note(deployed: DeployedModel, clean: GivenImages) -> tuple[str, ...]:
    """Raises WeightsError where the DNN is near chance on clean images."""
    found = check_on_clean(deployed, clean, IN_CALL)
    return () if found.note is None else (f"{found.accuracy:.1%} of clean are right; {found.note}",)


def _own_state(module: nn.Module) -> tuple[State, State]:
    return (
        {k: v.detach() for k, v in module.named_parameters()},
        {k: v.detach() for k, v in module.named_buffers()},
    )


def _accuracy(deployed: DeployedModel, data: GivenImages) -> float:
    predicted = fed(deployed, data).logits(data.images_NHWC).argmax(1).numpy()
    return float((predicted == data.labels_N).mean())

"""Repair a torch.nn.Module from images that it misclassifies, in one call and without a run.

from metarepair import repair
repaired = repair(model, (images, labels), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
repaired.module, repaired.validation_before, repaired.validation_after
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from metarepair.adaptation.accuracy import accuracy_on
from metarepair.adaptation.meta_test import Start
from metarepair.adaptation.repair_data import RepairData, split_collected
from metarepair.config.kit import PYTHON
from metarepair.config.repair import RepairConfig
from metarepair.config.run import RepairSettings
from metarepair.data.clean_images import CleanImages
from metarepair.data.given_images import GivenImages
from metarepair.data.given_module import GivenModule, collect_given, fed
from metarepair.data.selecting_images import SelectingImages
from metarepair.engine.adapted import adapted_names
from metarepair.engine.vectors import State
from metarepair.meta_training.theta_meta import load_start
from metarepair.methods import (
    Budget,
    Method,
    MethodContext,
    RepairedModel,
    check_method_settings,
    get_method,
    parse_limit,
    settings_of,
)
from metarepair.models.build import DeployedModel, state_hash
from metarepair.models.clean_check import IN_CALL, check_on_clean
from metarepair.probing.needs import IMAGES, probe_repair
from metarepair.repairs.export import EQUALITY_IMAGES
from metarepair.repairs.exportable import Exportable, Origin, with_ending
from metarepair.repairs.limits import Selection, take_inside
from metarepair.repairs.stage import repair_fairly
from metarepair.reports.call_card import CLEAN, VALIDATION, Measured, call_card, call_page
from tasks.errors import ConfigError, DataError, DivergedError
from tasks.records import Failures
from tasks.storage.manifest import require_manifest
from tasks.storage.paths import place, write_text

NAME_A_START = "Name a finished meta/<target>/ folder of a run."
FEW = 20  # with fewer images, the accuracy on validation moves in steps of more than five points


@dataclass(frozen=True, kw_only=True)
class Repaired(Exportable):
    """The result of `metarepair.repair`: a repaired DNN, its accuracies and what the repair cost.

    Accuracies are fractions from 0 to 1. Validation is the part of the failures (`repair.validation_fraction`, a fifth
    by default) that nothing was learned from. It chose `rate` and `episode`, so judge the repair on other images.

    Attributes:
        module: The repaired DNN, a new module in evaluation mode on the device of the given one.
        method: The name of the method that repaired it.
        validation_before: Accuracy of the given DNN on validation.
        validation_after: Accuracy of the repaired DNN on validation.
        rate: The inner rate that validation chose; None for a method that does not walk over tasks.
        episode: The episode that validation chose, from 0; None for a method that does not walk over tasks.
        images_seen: Images that went through the DNN to learn from; an image counts once for each pass.
        gradient_steps: Steps of an optimizer.
        clean_before: Accuracy of the given DNN on `clean`; None if no clean images were given.
        clean_after: Accuracy of the repaired DNN on `clean`; None if no clean images were given.
        notes: Sentences for the user: given images that are not failures, too few images, choices of the method.
        selection: How the repair was chosen inside `config.limits`, with what each measure is; None without limits.
            `selection.kept` says whether no repair was inside them: `module` then has the weights of the given DNN.
    """

    module: nn.Module = field(repr=False)
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
    selection: Selection | None = None
    _origin: Origin = field(repr=False)

    def report(self, path: str | Path) -> Path:
        """Write what is known of the repair as a single HTML page.

        It holds the accuracies on validation and on clean images, the limits, the cost and the notes, and says that no
        image judged the repair.

        Args:
            path: The file to write; it ends in `.html`.

        Returns:
            The path.

        Raises:
            ConfigError: `path` has another ending.
        """
        path = with_ending(path, ".html")
        write_text(path, call_page(self._origin.card))
        return path


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
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    budget: str | None = None,
) -> Repaired:
    """Repair a copy of `model`, an image classifier, from images that it misclassifies.

    `model` itself is not changed. A part of the failures is held out as validation and chooses the rate and the episode
    of the repair (paper Algorithm 1, lines 13-23), so judge the repaired DNN on other images.

    Args:
        model: A module that maps normalised images [B, C, H, W] to logits [B, K].
        failures: The misclassified images with their right labels, two images or more, in one of three forms. A pair
            (images, labels): images are uint8 [N, H, W, C] or [N, C, H, W], or floats [N, C, H, W] that are the DNN's
            own input; labels are whole numbers [N]. Or a sequence or `torch.utils.data.Dataset` of (image, label): an
            image is a PIL image, uint8 [H, W, C] or [C, H, W], or floats [C, H, W] that are the DNN's own input. Or a
            local path, text or `Path`, as `metarepair fix --failures` reads it: a folder of class folders, a CSV or
            JSON Lines file with the columns `path`, `label` and, if wanted, `group`, or a Parquet or Arrow file of
            encoded images. Its images become uint8 [N, H, W, 3], each of which must be readable; a group is learned
            from or in validation as a whole. Copy what lies on an object store to this machine first.
        method: The name of a repair method: `finetune`, `bn_adapt`, `metarepair`, or another of docs/methods.md that
            prepares nothing beforehand. None is `metarepair` if `start` is given, else `finetune`.
        start: The folder `meta/<target>/` of a run with this DNN, for `metarepair` only: the repair starts from the
            θ_meta in it.
        config: Settings of the repair. None is the defaults, or with `start` the inner loop and the shots that θ_meta
            was trained for. Its `limits` are measured on validation and on a part of `clean_training` that is held out.
        mean: Mean of each channel, of pixels in [0, 1], as the DNN was trained. Needed if any images are uint8, and
            refused if all are floats.
        std: Standard deviation of each channel, as `mean`.
        clean: Labelled images that the DNN should classify correctly, in any form that `failures` may have, to measure
            what the repair breaks. Nothing is learned from them.
        clean_training: Other clean images for methods that also learn from clean images, and for limits that are
            measured on them: uint8, in the size of `failures`, which are uint8 then as well.
        classes: Names of the classes of labels in a folder or table, in the order of the model's outputs. A label is
            one of these or a number from 0. None: the names in `clean`, or else `clean_training`, if that is a path:
            its sorted folders or labels, or those in its schema.
        image_size: Side in pixels of the square that images of a folder or table are resized and cropped to. None:
            they are squares of one size.
        budget: The limit of the repair, as `60s`, `10m`, `1h`, `60core-s`, `500steps` or `100000images`. None lets its
            settings decide.

    Returns:
        The repaired DNN with its accuracies, its cost and notes for the user.

    Raises:
        ConfigError: An argument or a setting is wrong, or the method cannot repair this DNN.
        DataError: The images or labels cannot be used, a path does not exist, a label names no class, there are fewer
            than two images, or all of them are classified correctly already.
        WeightsError: The DNN cannot take the images, is near chance on the clean ones, or is not that of `start`.
        StageError: `start` is not a finished folder of a run.
        DivergedError: The repaired weights are not finite.
        UserError: Base class of all of these (`tasks.errors`); the message says what to do.

    Example:
        >>> import numpy as np, torch
        >>> from metarepair import repair
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
        >>> with torch.no_grad():  # a model that finds class 0 in every image
        ...     _ = model[1].weight.zero_(), model[1].bias.copy_(torch.tensor([1.0, 0.0]))
        >>> images = np.random.default_rng(0).integers(192, 256, (40, 8, 8, 3), np.uint8)
        >>> labels = np.ones(40, np.int64)
        >>> repaired = repair(model, (images, labels), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        >>> repaired.validation_before, repaired.validation_after
        (0.0, 1.0)
    """
    usual = "finetune" if start is None else "metarepair"
    chosen = get_method(usual if method is None else method)
    _check_start(chosen, start)
    _check_limits(config, clean_training)
    given = collect_given(
        model,
        failures,
        clean=clean,
        clean_training=clean_training,
        classes=classes,
        mean=mean,
        std=std,
        image_size=image_size,
    )
    deployed, clean_images = fed(given.deployed, given.failures), given.clean
    config = _config_of(start) if config is None else _checked(config)
    adapted_names(deployed.module, config.inner.parts)
    data, notes = _repair_data(deployed, given, config, chosen)
    notes = given.notes + notes + _kitless(chosen)
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
        budget=Budget(None if budget is None else parse_limit(budget)),
    )
    before = accuracy_on(deployed, *_own_state(deployed.module), data.validation)
    chosen.check(deployed.module, context.settings)
    repaired = repair_fairly(chosen, deployed, data, context)
    bad = repaired.first_not_finite()
    if bad is not None:
        raise DivergedError(
            f"the repair by {repaired.method} diverged, {bad} is not finite. Lower the rates "
            "(config=RepairConfig(repair={'rates': [0.003]}))."
        )
    selection = None
    if config.limits.active:
        repaired, selection = take_inside(deployed, repaired, _selecting(deployed, data), config.limits)
    module = repaired.fill(deployed.module)
    validation = Measured(
        name=VALIDATION,
        images=len(data.validation),
        before=before,
        after=accuracy_on(
            repaired.architecture_of(deployed), repaired.parameters, repaired.buffers, data.validation
        ),
        used=_use_of_validation(repaired, selection),
    )
    clean_set = None if clean_images is None else _measure_clean(given, module, clean_images)
    return Repaired(
        module=module,
        method=chosen.name,
        validation_before=before,
        validation_after=validation.after,
        rate=repaired.rate,
        episode=repaired.episode,
        images_seen=repaired.images_seen,
        gradient_steps=repaired.gradient_steps,
        clean_before=None if clean_set is None else clean_set.before,
        clean_after=None if clean_set is None else clean_set.after,
        notes=notes + repaired.notes,
        selection=selection,
        _origin=Origin(
            repaired=replace(deployed, module=module),
            images_NHWC=data.validation.images_NHWC[:EQUALITY_IMAGES].copy(),
            preprocessing=given.preprocessing,
            architecture=repaired.architecture,
            card=call_card(
                model={"name": PYTHON + deployed.name, "stem": None},
                classes=given.class_names,
                preprocessing=given.preprocessing,
                method=chosen.name,
                seed=0,
                made_from="the given module",
                inputs={"deployed": state_hash(deployed.module.state_dict())},
                counts=_counts(data, given),
                measured=[validation] if clean_set is None else [validation, clean_set],
                selection=None if selection is None else selection.as_json(),
                notes=notes + repaired.notes,
                cost={"images_seen": repaired.images_seen, "gradient_steps": repaired.gradient_steps},
                settings=config.model_dump(mode="json"),
            ),
        ),
    )


def _use_of_validation(repaired: RepairedModel, selection: Selection | None) -> str:
    """Say what the images of validation were used for."""
    chose = [] if repaired.episode is None else ["the rate and the episode"]
    chose += [] if selection is None else ["the repair inside the limits"]
    if chose:
        return f"of the images given as failures, which chose {' and '.join(chose)} and so prove nothing"
    return "of the images given as failures, which nothing was learned from; they say nothing of images that were right"


def _measure_clean(given: GivenModule, module: nn.Module, clean: GivenImages) -> Measured:
    return Measured(
        name=CLEAN,
        images=len(clean),
        before=_accuracy(given.deployed, clean),
        after=_accuracy(replace(given.deployed, module=module), clean),
        used="which nothing was learned from or chosen by",
    )


def _counts(data: RepairData, given: GivenModule) -> dict[str, Any]:
    """Numbers of failures by use, as result.json has them."""
    learn, validation = data.learn, data.validation
    seen = {*learn.labels_N.tolist(), *validation.labels_N.tolist()}
    return {
        "collect": len(learn) + len(validation),
        "validation": len(validation),
        "fail": 0,
        "classes_without_failures": [k for k in range(given.deployed.num_classes) if k not in seen],
    }


def _selecting(deployed: DeployedModel, data: RepairData) -> SelectingImages:
    """The images that choose inside limits: the failures of validation, and held-out clean training images."""
    return SelectingImages(
        environment=data.validation,
        clean=None if data.clean is None else data.clean.held_out,
        classes=tuple(map(str, range(deployed.num_classes))),
    )


def _kitless(method: Method) -> tuple[str, ...]:
    """A note that a method without any preparation is fine-tuning, and what would prepare it."""
    if method.name not in ("finetune", "sgd"):
        return ()
    return ("without a repair kit this is plain fine-tuning; metarepair.RepairKit prepares more",)


def _checked(config: RepairConfig) -> RepairConfig:
    if not isinstance(config, RepairConfig):
        raise ConfigError(
            f"config is {type(config).__name__}; give RepairConfig(repair={{'rates': [0.01]}}), or leave it out."
        )
    check_method_settings(config)
    return config


def _check_limits(config: RepairConfig | None, clean_training: Any) -> None:
    """Raise ConfigError if a limit needs clean images and none are given, before a repair is spent on it."""
    limits = config.limits if isinstance(config, RepairConfig) else None
    needing = [name for name in ("max_broken", "max_clean_drop") if getattr(limits, name, None) is not None]
    if needing and clean_training is None:
        raise ConfigError(
            f"limits.{needing[0]}={getattr(limits, needing[0])} is measured on a part of clean_training that is held "
            "out, and clean_training is not given (clean only measures at the end). Give "
            "clean_training=(images, labels), or leave the limit out."
        )


def _check_start(method: Method, start: str | Path | None) -> None:
    if method.prepares:
        raise ConfigError(
            f"method={method.name!r} prepares DNNs before any repair, and a call cannot do that. Use it in a "
            "comparison: metarepair compare."
        )
    from_meta = "experiences" in method.uses
    if from_meta and start is None:
        raise ConfigError(
            f"method={method.name!r} needs start, the folder meta/<target>/ that `metarepair train` made for this DNN. "
            "Without one, use method='finetune' or 'bn_adapt'."
        )
    if not from_meta and start is not None:
        raise ConfigError(
            f"start={str(start)!r} is for method='metarepair' and 'metarepair_sgd'; {method.name} does not start from "
            "it."
        )


def _config_of(start: str | Path | None) -> RepairConfig:
    """Return the default settings; with a start, the inner loop and the task settings that it was trained with."""
    if start is None:
        return RepairConfig()
    folder = place(str(start))
    manifest = require_manifest(folder, NAME_A_START)
    if not {"inner", "task"} <= manifest.config.keys():
        raise ConfigError(
            f"{folder} is not a meta/<target>/ folder of a run, but the folder of {manifest.stage!r}. {NAME_A_START}"
        )
    config = RepairConfig.model_validate({key: manifest.config[key] for key in ("inner", "task")})
    return config.model_copy(update={"repair": RepairSettings(rates=(config.inner.rate,))})


def _repair_data(
    deployed: DeployedModel, given: GivenModule, config: RepairConfig, method: Method
) -> tuple[RepairData, tuple[str, ...]]:
    """Return the data that a method may see, and notes on it.

    Raises DataError for fewer than two images or groups, or if the DNN classifies all of them correctly.
    """
    failures, training = given.failures, given.training
    if len(np.unique(failures.image_ids_N)) < 2:
        raise DataError(
            "failures has one image, or images of one group. A repair learns from some and is chosen by others: give "
            "two or more."
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
        images_NHWC=failures.images_NHWC,
    )
    data = split_collected(collect, config, seed=0)
    if training is not None:
        clean = CleanImages(images_NHWC=training.images_NHWC, labels_N=training.labels_N)
        data = replace(data, clean=clean)
    return data, _notes(data, right, config.task.shots if method.walks else 0)


def _notes(data: RepairData, right: int, shots: int) -> tuple[str, ...]:
    """Return notes on images that are not failures, and on too few images.

    `shots` is 0 for a method that draws no supports.
    """
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
            f"images (the smallest has {counts.min()}): a support repeats them"
        )
    return tuple(notes)


def _clean_note(deployed: DeployedModel, clean: GivenImages) -> tuple[str, ...]:
    """Return a note if the DNN's accuracy on clean images is doubtful. Raises WeightsError if it is near chance."""
    checked = check_on_clean(deployed, clean, IN_CALL)
    if checked.note is None:
        return ()
    return (f"{checked.accuracy:.1%} of the clean images are classified correctly; {checked.note}",)


def _own_state(module: nn.Module) -> tuple[State, State]:
    return (
        {k: v.detach() for k, v in module.named_parameters()},
        {k: v.detach() for k, v in module.named_buffers()},
    )


def _accuracy(deployed: DeployedModel, data: GivenImages) -> float:
    predicted = fed(deployed, data).logits(data.images_NHWC).argmax(1).numpy()
    return float((predicted == data.labels_N).mean())

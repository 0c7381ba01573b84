"""A method and all data in, its repair from nothing but what it says that it uses out.

What a method has not asked for is not in the object that it is given, so a slip of its code cannot read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from metarepair.adaptation.meta_test import Start
from metarepair.adaptation.repair_data import RepairData
from metarepair.methods.base import Method, MethodContext, Uses, no_experiences
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel
from metarepair.models.wrappers import copied
from tasks.errors import ConfigError, DataError
from tasks.records import Failures

ONE_VALUE = "Expected more than 1 value per channel when training"  # torch.nn.functional.batch_norm


def repair_fairly(
    method: Method, deployed: DeployedModel, data: RepairData, context: MethodContext
) -> RepairedModel:
    """The repair of a copy of the deployed DNN.

    Raises ConfigError where the method needs clean images and has none, DataError where a batch of one image has no
    batch-norm statistics.
    """
    uses = method.uses_with(context.config)
    if "clean" in uses and not data.clean:
        raise ConfigError(
            f"{method.name} learns from the clean training split with these settings, and none is given. Give one (a "
            "run's data, clean_training of a call), or set task.clean_support and repair.clean_weight to 0 and take a "
            "method that needs none (finetune, bn_adapt)."
        )
    context = replace(context, load_meta=_loaded(context) if "experiences" in uses else no_experiences)
    own = replace(deployed, module=copied(deployed.module).eval())
    try:
        found: object = method.repair(own, data_for(uses, data), context)
    except ValueError as error:
        if ONE_VALUE not in str(error):
            raise
        raise DataError(
            f"{method.name} came to a batch of one image, of which a batch norm of {deployed.name} has one value per "
            f"channel ({error}); one value has no variance. There are {len(data.learn)} examples to learn from. "
            f"Collect more failures, or let a batch have two images (methods.{method.name}.batch_size, task.shots)."
        ) from error
    if not isinstance(found, RepairedModel):
        raise ConfigError(
            f"the method {method.name} returned a {type(found).__name__}; `repair` returns a RepairedModel "
            "(metarepair.methods.repaired.repaired_from makes one)."
        )
    _check_frozen(deployed.module, found)
    return found


def _check_frozen(module: nn.Module, found: RepairedModel) -> None:
    """Raises ConfigError for a method that changed what must stay; a changed architecture has other names."""
    for name, own in module.named_parameters():
        changed = found.parameters.get(name)
        if not own.requires_grad and changed is not None and not torch.equal(changed.to(own), own):
            raise ConfigError(
                f"the method {found.method} changed {name}, which has requires_grad=False in the deployed DNN. A "
                "method leaves such parameters as they are; set requires_grad_(True) on them where they may change."
            )


def _loaded(context: MethodContext) -> Callable[[], Start]:
    """θ_meta without what it is loaded by, which knows the data set and so the test split."""
    start = context.load_meta()
    return lambda: start


def data_for(uses: Sequence[Uses], data: RepairData) -> RepairData:
    """`data` without what is not used: labels of D_collect, D_collect itself, clean images."""
    return replace(
        data,
        learn=_seen(uses, data.learn),
        validation=_seen(uses, data.validation),
        clean=data.clean if "clean" in uses else None,
    )


def _seen(uses: Sequence[Uses], failures: Failures) -> Failures:
    if "failures" in uses:
        return failures
    seen = failures if "unlabelled" in uses else failures.take(np.empty(0, np.int64))
    unknown = np.full(len(seen), -1, np.int64)
    return replace(seen, labels_N=unknown, predicted_N=unknown)

"""Load a repaired DNN from the folder of its repair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from metarepair.methods import get_method
from metarepair.models.build import DeployedModel, read_tensors
from metarepair.models.wrappers import copied
from tasks.errors import DataError, unreadable
from tasks.storage.paths import Place, read_json

WEIGHTS, ARCHITECTURE = "model.safetensors", "architecture.json"


def load_repaired(folder: Place, method: str, deployed: DeployedModel) -> nn.Module:
    """Return the repaired DNN, in evaluation mode on the device of `deployed`.

    Raises DataError if the files do not fit the DNN.
    """
    module = repaired_architecture(folder, method, deployed.module)
    try:
        module.load_state_dict(read_tensors(folder / WEIGHTS))
    except RuntimeError as error:
        raise DataError(f"{folder / WEIGHTS} does not fit {deployed.name}: {error}") from error
    return module.to(deployed.device).eval()


@torch.no_grad()
def repaired_architecture(folder: Place, method: str, module: nn.Module) -> nn.Module:
    """Return a DNN of the repaired architecture: that of architecture.json if the folder has one, else of `module`.

    Its weights are not loaded yet. Raises DataError if architecture.json is damaged.
    """
    path = folder / ARCHITECTURE
    if not path.is_file():
        return copied(module)
    try:
        architecture: Mapping[str, Any] = read_json(path)
        return get_method(method).rebuild(module, architecture)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{unreadable(path, error)}. Repair again with --restart.") from error

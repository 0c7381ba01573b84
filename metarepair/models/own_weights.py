"""Let timm load weights into the project's own architectures from a folder or a repository of the Hub.

timm's hub has none for them, but `metarepair export --format hf` writes such folders:
`timm.create_model("local-dir:FOLDER", pretrained=True)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import load_pretrained
from torch import nn

SOURCES = ("local-dir", "hf-hub")  # of timm's create_model, which reads config.json there


def check_pretrained(name: str, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError unless timm's arguments say where weights for the DNN `name` lie."""
    config = arguments.get("pretrained_cfg")
    if not isinstance(config, Mapping) or config.get("source") not in SOURCES:
        raise ValueError(
            f"{name} has no weights in timm's hub, and none are downloaded; pass a weights file as checkpoint_path, or "
            "an exported folder as local-dir:FOLDER."
        )


def known_to_timm(
    module: nn.Module,
    name: str,
    *,
    stem: str,
    classifier: str,
    pretrained: bool,
    arguments: Mapping[str, Any],
) -> None:
    """State the architecture of a freshly built DNN for 32 px as timm's models do, and load weights if `pretrained`.

    stem, classifier: names of the first convolution and of the last layer. arguments: timm's for the DNN.
    """
    if pretrained:
        check_pretrained(name, arguments)
    config = {"architecture": name, "input_size": (3, 32, 32), "first_conv": stem, "classifier": classifier}
    config |= arguments.get("pretrained_cfg") or {}
    module.pretrained_cfg = config  # type: ignore[assignment]  # as in timm
    if pretrained:
        channels, classes = int(arguments.get("in_chans", 3)), int(module.num_classes)  # type: ignore[arg-type]
        load_pretrained(module, config, num_classes=classes, in_chans=channels)

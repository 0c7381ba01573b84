"""Build the DNNs of hubs: timm's and transformers' on the Hugging Face Hub, and torchvision's.

A repository's `config.json` is read, and none of its code is run. The weights are loaded as those of any other file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import timm
from torch import nn

from metarepair.weights.hub import (
    CONFIG,
    TIMM_HUB,
    TORCHVISION,
    blob_sha256,
    hub_file,
    read_hub_name,
)
from metarepair.weights.stated import Stated, stated_of, timm_config, transformers_config
from tasks.errors import ConfigError, WeightsError, near_names
from tasks.storage.paths import Place


def build_from_hub(name: str, num_classes: int) -> nn.Module:
    """Build the DNN `name` of a hub, with new random weights.

    Raises ConfigError or WeightsError if the hub's files are missing or are of no classifier, and if it has another
    number of classes: a DNN of a hub is never given a new classifier.
    """
    check_count(name, stated_of(name, ""), num_classes)
    if name.startswith(TORCHVISION):
        return _torchvision(name, num_classes)
    return _timm(name, num_classes) if name.startswith(TIMM_HUB) else _transformers(name)


def check_count(name: str, stated: Stated | None, num_classes: int) -> None:
    """Raise WeightsError if a hub states another number of classes than the data set has."""
    if stated is None or stated.num_classes in (None, num_classes):
        return
    names = "" if stated.classes is None else f" ({', '.join(stated.classes[:3])}, …)"
    raise WeightsError(
        f"{name} has {stated.num_classes} classes{names}, and the data set has {num_classes}. A model is repaired for "
        "the classes that it has: give images of these, with all their names in data.classes if some have no image, or "
        "a model for the classes of the data set."
    )


def origin_note(name: str, path: Place, stated: Stated, **used: object) -> str:
    """Say which file the weights of a hub's DNN are, and what of the preparation is the hub's; `used`: what is used."""
    digest = blob_sha256(path) if isinstance(path, Path) else None
    said = {key: (value, getattr(stated, key)) for key, value in used.items()}
    taken = [f"{key} {value}" for key, (value, its) in said.items() if value == its is not None]
    other = [
        f"{key} {value}, where it states {its}"
        for key, (value, its) in said.items()
        if value != its is not None
    ]
    parts = [
        f"weights {path.name}{f' with the SHA-256 {digest[:16]}…' if digest else ''}",
        *([f"{', '.join(taken)} as the hub states"] if taken else []),
        *other,
        "what else it states of preparation, such as a crop, is not followed",
    ]
    return f"{name}: {'; '.join(parts)}"


def _timm(name: str, num_classes: int) -> nn.Module:
    found = read_hub_name(name)
    architecture = timm_config(found)["architecture"]
    if architecture not in timm.list_models():
        near = near_names(architecture, timm.list_models()) or "."
        raise ConfigError(
            f"{name} is a {architecture!r}, which timm {timm.__version__} does not have{near} Give a model that it "
            "has, or install a release of timm that has this one."
        )
    folder = hub_file(found, CONFIG).parent
    return _built(name, lambda: timm.create_model(f"local-dir:{folder}", num_classes=num_classes))


def _torchvision(name: str, num_classes: int) -> nn.Module:
    from torchvision.models import get_model

    from metarepair.weights.torchvision_files import torchvision_name

    known = torchvision_name(name)
    return _built(name, lambda: get_model(known, weights=None, num_classes=num_classes))


def _transformers(name: str) -> nn.Module:
    found = read_hub_name(name)
    transformers_config(found)  # it says if the package is missing
    from metarepair.models.transformers_classifier import build_classifier

    folder = hub_file(found, CONFIG).parent
    return _built(name, lambda: build_classifier(folder))


def _built(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except Exception as error:  # a constructor may raise anything for the settings in a config.json
        said = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"model.name={name!r} cannot be built ({type(error).__name__}: {said}). Give a classifier of images that "
            "the installed version of its library has."
        ) from error

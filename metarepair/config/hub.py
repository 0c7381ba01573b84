"""Complete the settings of a run whose model is of a hub: its commit, its own weights, and what the hub states of it.

The settings then say all of it themselves, so that a worker, a resumed run and a report need not ask the hub again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from metarepair.config.data import DataConfig
from metarepair.config.kit import merged, section_of
from metarepair.weights.hub import TORCHVISION, is_hub, pinned, read_hub_name
from metarepair.weights.stated import Stated, check_normalisation, plain_name, stated_of
from tasks.datasets import dataset_info
from tasks.datasets.labelled_images import form_of
from tasks.datasets.source import UNSPLIT
from tasks.datasets.unsplit import unsplit_source
from tasks.errors import UserError

NORMALISATION = ("mean", "std")
PREPARATION = (*NORMALISATION, "input_size")
BY_NAME = ("imagefolder", UNSPLIT)  # data sets whose images are labelled by the names of classes


def with_hub(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, with those of its hub's model where it says nothing itself.

    A key that is there with no value says that there is none. Raises ConfigError or WeightsError for a model that the
    hub does not have, or whose files are missing here.
    """
    model, data = section_of(values, "model"), section_of(values, "data")
    name = model.get("name")
    weights = name if model.get("weights") is None else model["weights"]
    if not isinstance(name, str) or not isinstance(weights, str) or not (is_hub(name) or is_hub(weights)):
        return values
    name, weights = _pinned(name), _pinned_weights(weights)
    values = values | {"model": model | {"name": name, "weights": weights}}
    if {*PREPARATION} <= model.keys() and "classes" in data:
        return values
    stated = stated_of(name, weights)
    if stated is None:
        return values
    given = _given_by(stated, model, data)
    check_normalisation(name, {key: value for key, value in given["model"].items() if key not in model})
    return merged(given, values)


def _pinned(name: str) -> str:
    """A model or weights file at its commit; a name that is of no hub, or of torchvision, as it is."""
    return str(pinned(read_hub_name(name))) if is_hub(name) and not name.startswith(TORCHVISION) else name


def _pinned_weights(weights: str) -> str:
    """The same for weights, of which torchvision:NAME are the model's best."""
    if not weights.startswith(TORCHVISION) or "." in weights:
        return _pinned(weights)
    from metarepair.weights.torchvision_files import default_weights

    return default_weights(weights)


def _given_by(stated: Stated, model: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a hub gives: preparation of images, and the classes in the order of the logits."""
    otherwise = "normalisation" in model or data.get("mean") is not None
    keys = [key for key in PREPARATION if not (otherwise and key in NORMALISATION)]
    prepared = {key: getattr(stated, key) for key in keys}
    classes = _reordered(stated, data) if "classes" not in data else None
    return {
        "model": {key: value for key, value in prepared.items() if value is not None},
        "data": {} if classes is None else {"classes": classes},
    }


def _reordered(stated: Stated, data: Mapping[str, Any]) -> tuple[str, ...] | None:
    """All names of the model's classes, as the data set spells those that it has, if it has no others.

    None if they are the data set's own in their order, or if its labels are numbers.
    """
    if stated.classes is None:
        return None
    try:
        source = DataConfig.model_validate(data).source()
        tables = source.name == UNSPLIT and form_of(unsplit_source(source)) == "tables"
        if source.name not in BY_NAME or tables:
            return None
        names = dataset_info(source).classes
    except (UserError, ValidationError):  # it is reported where the data set is read
        return None
    ours, theirs = {plain_name(name): name for name in names}, list(map(plain_name, stated.classes))
    ambiguous = len(ours) < len(names) or len(set(theirs)) < len(theirs)
    has_others = not ours.keys() <= set(theirs)
    if ambiguous or has_others:
        return None
    classes = tuple(ours.get(plain, name) for plain, name in zip(theirs, stated.classes, strict=True))
    return None if classes == names else classes

"""`metarepair export`: a run, or a weights file, in; a program or a file like the user's own out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from metarepair.compare.plan import PLAN
from metarepair.config.load import load_config, parse_config
from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings, load_surroundings
from metarepair.repairs.export import equality_images, export_original, export_program, require_packages
from metarepair.repairs.result import RESULT
from metarepair.repairs.saved import ARCHITECTURE, WEIGHTS, load_repaired
from metarepair.runs.logs import RESULTS
from metarepair.weights import SCHEME, resolve_weights
from tasks.errors import ConfigError, DataError, unreadable
from tasks.storage.paths import Place, find, local, place

logger = logging.getLogger(__name__)
Format = Literal["torch", "onnx", "original"]


def export(what: str, *, kind: Format, out: str, config_file: Path | None) -> None:
    """Writes the repaired DNN of `what` (a run's folder, one of its weights files, or any with a config) to `out`."""
    if kind != "original":
        require_packages(kind)
    weights = _find_weights(place(what))
    config = _config_of(weights, config_file)
    target = place(out)
    _refuse_input(target, [weights, *_read_with(weights, config, config_file)])
    if kind == "original":
        _refuse_other_architecture(weights)
        deployed = _load(weights, config).deployed
        original = resolve_weights(config.model.weights)
        logger.log(RESULTS, export_original(deployed, original, target, entry=config.model.entry))
        return
    here = _load(weights, config)
    images = equality_images(here.split("test"))
    exported = export_program(here.deployed, images, kind, target.parent, name=target.name)
    logger.log(RESULTS, exported.words)


def _read_with(weights: Place, config: Config, config_file: Path | None) -> list[Place]:
    """What the export of `weights` reads, or a later one would, besides these."""
    data, features = config.data, config.features
    own = (data.root, data.train, data.test, data.archive, features.weights)
    shipped = config.model.weights.startswith(SCHEME)
    deployed = resolve_weights(config.model.weights) if shipped else place(config.model.weights)
    settings = [config_file.absolute()] if config_file is not None else []
    return [
        deployed,
        weights.parent / ARCHITECTURE,
        *_told(weights),
        *settings,
        *(place(p) for p in own if p),
    ]


def _refuse_input(target: Place, inputs: Iterable[Place]) -> None:
    for path in inputs:
        if _are_same(target, path):
            raise ConfigError(
                f"--out {target} is a file that the export reads ({path}), and writing it would replace that. Name "
                "another file."
            )


def _are_same(one: Place, other: Place) -> bool:
    """Whether two places are one file, also by links."""
    if isinstance(one, Path) and isinstance(other, Path) and one.exists() and other.exists():
        return one.samefile(other)
    return one == other


def _load(weights: Place, config: Config) -> Surroundings:
    """The DNN with `weights`; of the architecture that is written beside them, where one is."""
    if _has_other_architecture(weights):
        here = load_surroundings(config, device=torch.device("cpu"))
        module = load_repaired(weights.parent, weights.parent.parent.name, here.deployed)
        return replace(here, deployed=replace(here.deployed, module=module))
    path, deployed = local(weights), Path(config.model.weights).expanduser()
    # The entry is one of the configuration's own file, which may be gone by now.
    entry = config.model.entry if deployed.is_file() and path.samefile(deployed) else None
    model = config.model.model_copy(update={"weights": str(path), "entry": entry})
    return load_surroundings(config.model_copy(update={"model": model}), device=torch.device("cpu"))


def _has_other_architecture(weights: Place) -> bool:
    return weights.name == WEIGHTS and (weights.parent / ARCHITECTURE).is_file()


def _refuse_other_architecture(weights: Place) -> None:
    if _has_other_architecture(weights):
        raise ConfigError(
            f"{weights} is of another architecture than the deployed DNN ({ARCHITECTURE} beside it says which), so a "
            "file like the deployed one's cannot hold it. Take the format torch or onnx, or the weights together with "
            f"{ARCHITECTURE}."
        )


def _find_weights(path: Place) -> Place:
    """The weights themselves, or the ones that MetaRepair made in a run's folder, where these are of one target."""
    if path.is_file():
        return path
    found = find(path, WEIGHTS, deep=True)
    repaired = [p for p in found if (p.parent.parent.parent / RESULT).is_file()]
    repaired = repaired or [p for p in found if (p.parent.parent.parent.parent / PLAN).is_file()]
    if not repaired:
        raise ConfigError(
            f"{path} is neither a weights file nor a run with repaired weights. Give STORAGE/NAME of a run that is "
            "repaired, or a model.safetensors."
        )
    best = [p for p in repaired if p.parent.parent.name == "metarepair"] or repaired
    targets = {str(p.parent.parent.parent) for p in best}
    methods = {p.parent.parent.name for p in best}
    if len(targets) > 1 or len(methods) > 1:
        raise ConfigError(
            f"{path} holds several repaired DNNs. Name one: {', '.join(str(p) for p in best[:8])}"
        )
    return min(best, key=lambda p: int(p.parent.name))  # the first seed


def _told(weights: Place) -> list[Place]:
    """The files of the run that made `weights` which hold its settings."""
    target = weights.parent.parent.parent
    return [path for path in (target / RESULT, target.parent / PLAN) if path.is_file()]


def _config_of(weights: Place, file: Path | None) -> Config:
    """The settings of the run that made `weights`, else those of a YAML file."""
    if file is not None:
        return load_config(file, [])
    told = _told(weights)
    if not told:
        raise ConfigError(
            f"{weights} lies in no run's repaired/ or compare/<target>/<method>/<seed>/, so its DNN and data set are "
            "not known. Add --config FILE with its model and data."
        )
    try:
        return parse_config(json.loads(told[0].read_text(encoding="utf-8"))["config"], where=str(told[0]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{unreadable(told[0], error)}. Add --config FILE.") from error

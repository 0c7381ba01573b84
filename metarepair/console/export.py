"""Export a repaired DNN, from a run or a weights file (`metarepair export`)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from metarepair.compare.plan import PLAN
from metarepair.config.load import load_config, parse_config
from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings, load_surroundings
from metarepair.repairs.export import equality_images, export_original, export_program, require_packages
from metarepair.repairs.hf_folder import FolderResult, check_folder, export_folder
from metarepair.repairs.result import RESULT
from metarepair.repairs.saved import ARCHITECTURE, WEIGHTS, load_repaired
from metarepair.reports.card import CARD_DATA, Card, card_of_repair, read_card, unjudged_card
from metarepair.reports.words import method_words
from metarepair.runs.layout import FIX_RECORD, Run
from metarepair.runs.logs import RESULTS
from metarepair.weights import is_named, resolve_weights
from tasks.errors import ConfigError, DataError, unreadable
from tasks.storage.manifest import read_manifest, verify_checksums
from tasks.storage.paths import Place, find, inside, local, place, read_json

logger = logging.getLogger(__name__)
NO_CARD = (
    "These weights came without a card, so this one does not say how they were repaired or judged. Measure them on "
    "labelled images of the setting before you take them."
)
Format = Literal["torch", "onnx", "original", "hf"]


def export(what: str, *, kind: Format, out: str, config_file: Path | None) -> None:
    """Write a repaired DNN to `out` as a program, in the format of its original weights file, or as a folder (hf).

    what: a run's folder, or a weights file, which needs `config_file` unless a run made it. Raises ConfigError if no
    repaired weights are found, or if `out` is inside their run or would overwrite an input, DataError if the run's
    settings or weights are damaged.
    """
    if kind in ("torch", "onnx"):
        require_packages(kind)
    weights = _find_weights(place(what))
    config = _config_of(weights, config_file)
    _check_undamaged(weights)
    target = place(out)
    inputs = [weights, *_read_with(weights, config, config_file)]
    if kind != "hf":
        _refuse_input(target, inputs)
    _refuse_in_run(target, weights)
    if _told(weights):
        method, seed = weights.parent.parent.name, weights.parent.name
        logger.log(RESULTS, f"Repair by {method_words(method)}, seed {seed}: {weights}")
    if kind == "hf":
        logger.log(RESULTS, _export_folder(weights, config, check_folder(target), inputs).words)
        return
    if kind == "original":
        _refuse_other_architecture(weights)
        deployed = _load(weights, config).deployed
        original = resolve_weights(config.model.weights)
        logger.log(RESULTS, export_original(deployed, original, target, entry=config.model.entry))
        return
    here = _load(weights, config)
    test = here.split("test")
    exported = export_program(
        here.deployed,
        equality_images(test),
        kind,
        target.parent,
        class_names=test.classes,
        name=target.name,
    )
    logger.log(RESULTS, exported.words)


def _export_folder(weights: Place, config: Config, target: Path, inputs: Iterable[Place]) -> FolderResult:
    """Write the folder of the format hf, with the card of the run, or one that says that nobody judged."""
    held = next((path for path in inputs if _is_inside(path, target)), None)
    if held is not None:
        raise ConfigError(f"--out {target} holds a file that the export reads ({held}). Name another folder.")
    here = _load(weights, config)
    test, model = here.split("test"), config.model
    card = _card(weights) or unjudged_card(
        model={"name": model.name, "stem": model.stem},
        classes=test.classes,
        preprocessing=here.deployed.preprocessing,
        verdict=NO_CARD,
    )
    changed = weights.parent / ARCHITECTURE
    return export_folder(
        here.deployed,
        equality_images(test),
        target,
        card,
        architecture=read_json(changed) if _has_other_architecture(weights) else None,
    )


def _card(weights: Place) -> Card | None:
    """Return the card of a run's repair, or the one beside weights that were handed over; None if there is none.

    Raises DataError if it cannot be read.
    """
    target = weights.parent.parent.parent
    told = target / RESULT if (target / RESULT).is_file() else weights.parent / CARD_DATA
    try:
        if told.name != RESULT:
            return read_card(weights)
        method, seed = weights.parent.parent.name, int(weights.parent.name)
        return card_of_repair(Run(target.parent.parent), read_json(told), method, seed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{unreadable(told, error)}. Make it again: metarepair report --config FILE."
        ) from error


def _is_inside(path: Place, folder: Path) -> bool:
    """Whether a file or folder is `folder` or lies in it, links included."""
    if not (isinstance(path, Path) and path.exists() and folder.exists()):
        return False
    whole = path.resolve()
    return any(one.samefile(folder) for one in (whole, *whole.parents))


def _check_undamaged(weights: Place) -> None:
    """Raise DataError if the weights are those of a run's stage and differ from what its manifest promises."""
    for folder in (weights.parent, weights.parent.parent.parent):  # a comparison's repair, and a run's target
        manifest = read_manifest(folder)
        if manifest is not None and inside(weights, folder) in manifest.files:
            verify_checksums(folder, manifest)


def _read_with(weights: Place, config: Config, config_file: Path | None) -> list[Place]:
    """Return the other files and folders that an export of `weights` reads, or that a later one would."""
    data, features = config.data, config.features
    own = (data.root, data.train, data.test, data.archive, features.weights)
    given = config.model.weights
    deployed = resolve_weights(given) if is_named(given) else place(given)
    settings = [config_file.absolute()] if config_file is not None else []
    return [
        deployed,
        weights.parent / ARCHITECTURE,
        *_told(weights),
        *settings,
        *(place(p) for p in own if p),
    ]


def _refuse_in_run(target: Place, weights: Place) -> None:
    """Raise ConfigError if an export would be written among the results of the run of `weights`."""
    handed_over = (weights.parent / FIX_RECORD).is_file()
    if not handed_over and not _told(weights):
        return
    # Of a run: <root>/<repaired or compare>/<target>/<method>/<seed>/
    root = weights.parent if handed_over else weights.parent.parent.parent.parent.parent
    named_inside = str(target).startswith(f"{root}/")
    where = target if target.exists() else target.parent  # it may be reached by a link
    if named_inside or (isinstance(root, Path) and _is_inside(where, root)):
        raise ConfigError(
            f"--out {target} is inside the run {root}, whose files are its own. Name a place outside of it."
        )


def _refuse_input(target: Place, inputs: Iterable[Place]) -> None:
    if target.is_dir():
        raise ConfigError(f"--out {target} is a folder. Name a file in it, such as {target / 'model.pt2'}.")
    for path in inputs:
        if _are_same(target, path):
            raise ConfigError(
                f"--out {target} is a file that the export reads ({path}), and would be overwritten. Name another "
                "file."
            )


def _are_same(one: Place, other: Place) -> bool:
    """Whether two places are the same file, links included."""
    if isinstance(one, Path) and isinstance(other, Path) and one.exists() and other.exists():
        return one.samefile(other)
    return one == other


def _load(weights: Place, config: Config) -> Surroundings:
    """Load the DNN with `weights`, in the architecture that is saved beside them if there is one."""
    if _has_other_architecture(weights):
        here = load_surroundings(config, device=torch.device("cpu"))
        module = load_repaired(weights.parent, weights.parent.parent.name, here.deployed)
        return replace(here, deployed=replace(here.deployed, module=module))
    path, deployed = local(weights), Path(config.model.weights).expanduser()
    # model.entry belongs to the configuration's own weights file, which may no longer exist.
    entry = config.model.entry if deployed.is_file() and path.samefile(deployed) else None
    model = config.model.model_copy(update={"weights": str(path), "entry": entry})
    return load_surroundings(config.model_copy(update={"model": model}), device=torch.device("cpu"))


def _has_other_architecture(weights: Place) -> bool:
    return weights.name == WEIGHTS and (weights.parent / ARCHITECTURE).is_file()


def _refuse_other_architecture(weights: Place) -> None:
    if _has_other_architecture(weights):
        raise ConfigError(
            f"{weights} has another architecture than the deployed DNN (described by {ARCHITECTURE} beside it), so a "
            "file in the deployed DNN's format cannot hold it. Use --format torch or onnx, or take the weights "
            f"together with {ARCHITECTURE}."
        )


def _find_weights(path: Place) -> Place:
    """Return `path` itself if it is a file, or the repaired weights of a run's folder.

    They are those that were taken inside limits; without limits MetaRepair's, if there are any. Raises ConfigError if
    the folder has no repaired weights, those of several targets or methods, or if the deployed weights were kept.
    """
    if path.is_file():
        return path
    found = find(path, WEIGHTS, deep=True)
    repaired = [p for p in found if (p.parent.parent.parent / RESULT).is_file()]
    repaired = repaired or [p for p in found if (p.parent.parent.parent.parent / PLAN).is_file()]
    if not repaired:
        raise ConfigError(
            f"{path} is neither a weights file nor a run with repaired weights. Give STORAGE/NAME of a repaired run, "
            "or a model.safetensors."
        )
    best = _taken(path, repaired)
    targets = {str(p.parent.parent.parent) for p in best}
    methods = {p.parent.parent.name for p in best}
    if len(targets) > 1 or len(methods) > 1:
        raise ConfigError(
            f"{path} holds several repaired DNNs. Name one: {', '.join(str(p) for p in best[:8])}"
        )
    return min(best, key=lambda p: int(p.parent.name))  # the first seed


def _taken(path: Place, repaired: Sequence[Place]) -> Sequence[Place]:
    """Those of the repaired weights that limits took; without limits MetaRepair's, or else all."""
    choices = [(weights, choice) for weights in repaired if (choice := _choice(weights)) is not None]
    if not choices:
        return [p for p in repaired if p.parent.parent.name == "metarepair"] or repaired
    taken = [
        weights
        for weights, choice in choices
        if not choice["kept"]
        and (weights.parent.parent.name, weights.parent.name) == (choice["method"], str(choice["seed"]))
    ]
    if not taken:
        raise ConfigError(
            f"{path}: no repair was inside the limits, so that the deployed weights were kept. To export a repair all "
            f"the same, name its weights: {', '.join(str(p) for p in repaired[:8])}"
        )
    return taken


def _choice(weights: Place) -> Mapping[str, Any] | None:
    """What the limits of the run took for the target of these weights; None without limits."""
    result = _told(weights)[0]
    if result.name != RESULT:
        return None
    try:
        choice: Mapping[str, Any] | None = read_json(result).get("choice")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{unreadable(result, error)}. Name the weights file to export.") from error
    return choice


def _told(weights: Place) -> list[Place]:
    """Return the files with the settings of the run that made `weights`."""
    target = weights.parent.parent.parent
    return [path for path in (target / RESULT, target.parent / PLAN) if path.is_file()]


def _config_of(weights: Place, file: Path | None) -> Config:
    """Return the settings of the YAML file `file`, or if None, of the run that made `weights`."""
    if file is not None:
        return load_config(file, [])
    told = _told(weights)
    if not told:
        raise ConfigError(
            f"{weights} is not in a run's repaired/ or compare/<target>/<method>/<seed>/, so its DNN and data set are "
            "unknown. Add --config FILE with its model and data."
        )
    try:
        return parse_config(read_json(told[0])["config"], where=str(told[0]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{unreadable(told[0], error)}. Add --config FILE.") from error

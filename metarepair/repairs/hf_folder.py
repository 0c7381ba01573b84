"""Export a repaired DNN as a folder in Hugging Face's form: weights, configuration and model card.

timm loads the folder (`timm.create_model("local-dir:FOLDER", pretrained=True)`) if it builds the very DNN, which is
tried before the folder gets its name. Of other DNNs, config.json names no architecture, and the card says how to load
them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import model_entrypoint
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from metarepair.models.build import DeployedModel, save_weights
from metarepair.repairs.export import Comparison, compared, input_facts, plain
from metarepair.repairs.saved import ARCHITECTURE, WEIGHTS
from metarepair.reports.card import CARD_FILES, write_card
from metarepair.reports.card_text import NOT_TIMM, TIMM_ALONE, TIMM_AND_OURS
from tasks.errors import ConfigError
from tasks.records import Pixels
from tasks.storage.manifest import versions
from tasks.storage.paths import Place, read_json, write_text, writing_folder

logger = logging.getLogger(__name__)
CONFIG = "config.json"
OURS = "metarepair"  # entry of config.json
FILES = (WEIGHTS, CONFIG, *CARD_FILES, ARCHITECTURE)
# Of timm's pretrained_cfg. The others describe timm's own weights for the architecture: licence, paper, test sizes.
KEPT = (
    "custom_load",
    "input_size",
    "fixed_input_size",
    "interpolation",
    "crop_pct",
    "crop_mode",
    "mean",
    "std",
    "num_classes",
    "pool_size",
    "first_conv",
    "classifier",
)


@dataclass(frozen=True, kw_only=True)
class FolderResult:
    """An exported folder. built_by: what builds the DNN. why: if timm does not, why not."""

    path: Path
    built_by: str
    why: str
    comparison: Comparison | None

    @property
    def words(self) -> str:
        if self.comparison is None:
            return f"{self.path}: timm alone does not load this DNN ({self.why}); README.md in it says how to load it"
        return (
            f"{self.path}: {self.built_by} loads it, with the same classes on {self.comparison.images} images of the "
            f"data set, logits differ by at most {self.comparison.difference:.2g}"
        )


def check_folder(out: Place) -> Path:
    """Return the folder to write. Raises ConfigError unless it is new, empty or an earlier export, and local."""
    if not isinstance(out, Path):
        raise ConfigError(f"{out}: a folder is exported to a local path. Give one, and copy it from there.")
    if out.is_dir() and any(out.iterdir()) and not _is_export(out):
        raise ConfigError(
            f"{out} is a folder with other files than those of an earlier export, so it is not replaced. Give a new "
            "folder, or an empty one."
        )
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, and this format writes a folder. Give a new folder.")
    return out


def _is_export(folder: Path) -> bool:
    if not {path.name for path in folder.iterdir()} <= {*FILES}:
        return False
    try:
        return OURS in read_json(folder / CONFIG)
    except (OSError, ValueError, TypeError):
        return False


def export_folder(
    deployed: DeployedModel,
    images_BHWC_u8: Pixels,
    out: Place,
    card: Mapping[str, Any],
    *,
    architecture: Mapping[str, Any] | None = None,
) -> FolderResult:
    """Write `deployed` as a folder that appears whole or not at all, checked on the images (one or more).

    card: of `metarepair.reports.card`, with class names. architecture: of a method that changed it. Raises ConfigError
    if `out` is not new, empty or an earlier export.
    """
    path = check_folder(out)  # again: files may have come in while the DNN was loaded
    x_BCHW = deployed.normalise(images_BHWC_u8).float().cpu().contiguous()
    with writing_folder(path) as part:
        save_weights(part / WEIGHTS, deployed.module.state_dict(), {"method": card.get("method")})
        if architecture is not None:
            write_text(part / ARCHITECTURE, json.dumps(dict(architecture), indent=1) + "\n")
        found = _configure(part, deployed, x_BCHW, card["classes"])
        told = {**card, "preprocessing": deployed.preprocessing, "built_by": found.built_by}
        write_card(told, part / WEIGHTS)
    return FolderResult(path=path, built_by=found.built_by, why=found.why, comparison=found.comparison)


class _NotTimmError(Exception):
    """Timm does not build the very DNN; the text says why."""


@dataclass(frozen=True, kw_only=True)
class _Configured:
    built_by: str = NOT_TIMM
    why: str = ""
    comparison: Comparison | None = None


def _configure(part: Path, deployed: DeployedModel, x_BCHW: Tensor, classes: Sequence[str]) -> _Configured:
    """Write config.json: timm's, if timm then loads the very DNN, else one without an architecture."""
    facts = input_facts(deployed.preprocessing, classes, x_BCHW)
    preprocessing = {key: facts[key] for key in ("input_size", "mean", "std")}
    preprocessing |= {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"}
    told = getattr(deployed.module, "pretrained_cfg", None)
    architecture = str(told.get("architecture")) if isinstance(told, Mapping) else ""
    try:
        if not timm.is_model(architecture):
            raise _NotTimmError("it is not one of timm's models")
        _write_timm_config(part / CONFIG, deployed.module, preprocessing, classes)
        comparison = _loaded_by_timm(part, deployed.module, preprocessing, x_BCHW)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # timm's builders may raise anything
        why = " ".join(str(error).split())[:200]
        if not isinstance(error, _NotTimmError):
            why = f"it raised {type(error).__name__}: {why}"
        _write_config(part / CONFIG, {"pretrained_cfg": preprocessing}, classes)
        return _Configured(why=why)
    ours = not model_entrypoint(architecture).__module__.startswith("timm.")
    return _Configured(built_by=TIMM_AND_OURS if ours else TIMM_ALONE, comparison=comparison)


def _write_timm_config(
    path: Path, module: nn.Module, preprocessing: Mapping[str, Any], classes: Sequence[str]
) -> None:
    """Write config.json by timm, without what it says of its own weights for the architecture."""
    own = {"pretrained_cfg": dict(preprocessing)}
    save_config_for_hf(module, str(path), model_config=own, model_args={"num_classes": len(classes)})
    config = read_json(path)
    config["pretrained_cfg"] = {
        key: config["pretrained_cfg"][key] for key in KEPT if key in config["pretrained_cfg"]
    }
    _write_config(path, config, classes)


def _write_config(path: Path, config: Mapping[str, Any], classes: Sequence[str]) -> None:
    ours = {
        "num_classes": len(classes),
        "label_names": list(classes),
        OURS: {"version": versions().get(OURS)},
    }
    write_text(path, json.dumps({**config, **ours}, indent=1) + "\n")


def _loaded_by_timm(
    folder: Path, module: nn.Module, preprocessing: Mapping[str, Any], x_BCHW: Tensor
) -> Comparison:
    """Load the folder by timm and compare. Raises _NotTimmError if another DNN or another preprocessing comes out."""
    with torch.random.fork_rng(devices=[]):  # building draws the weights that are then replaced
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    found = compared(plain(module), loaded, x_BCHW)
    if not found.same:
        raise _NotTimmError(f"what timm builds {found.words}")
    told = timm.data.resolve_model_data_config(loaded)
    other = [key for key in preprocessing if _plain(told[key]) != _plain(preprocessing[key])]
    if other:
        raise _NotTimmError(f"timm reads another {other[0]}, {told[other[0]]}")
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

"""Save and export a repaired DNN from Python: what `Repaired` and `FixedModel` share."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from metarepair.models.build import DeployedModel, save_weights
from metarepair.repairs.export import export_program
from metarepair.repairs.hf_folder import export_folder
from metarepair.repairs.saved import ARCHITECTURE
from metarepair.reports.card import Card, foreign_file, write_card
from tasks.errors import ConfigError
from tasks.records import Pixels
from tasks.storage.paths import write_text

logger = logging.getLogger(__name__)
Format = Literal["torch", "onnx", "hf"]
ENDINGS = {"torch": ".pt2", "onnx": ".onnx"}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a repaired DNN is written with.

    Attributes:
        repaired: The repaired DNN, which takes `images_NHWC`.
        images_NHWC: Images that exports are checked on, one or more.
        preprocessing: Mean, std and input size of the DNN; mean and std are None if nobody told them.
        card: Its model card, without a weights file.
        architecture: The new architecture, of a method that changed it.
    """

    repaired: DeployedModel
    images_NHWC: Pixels
    preprocessing: Mapping[str, Any]
    card: Card
    architecture: Mapping[str, Any] | None = None


class Exportable:
    """A repaired DNN that can be saved and exported."""

    module: nn.Module
    method: str
    _origin: Origin

    def save(self, path: str | Path) -> Path:
        """Write the weights of `module`, and a model card beside them: `README.md` and `card.json`.

        A `README.md` or `card.json` that is not the card of this file stays as it is; a warning is logged then, and the
        weights have no card. Save each model in a folder of its own.

        Args:
            path: The file to write; it ends in `.safetensors`.

        Returns:
            The path.

        Raises:
            ConfigError: `path` has another ending.
        """
        path, origin = with_ending(path, ".safetensors"), self._origin
        save_weights(path, self.module.state_dict(), {"method": self.method})
        foreign = foreign_file(path)
        if foreign is not None:
            logger.warning(
                f"{path} is written without a model card, since {foreign} is not the card of this file. Save it in a "
                "folder of its own."
            )
            return path
        if origin.architecture is not None:
            write_text(path.parent / ARCHITECTURE, json.dumps(dict(origin.architecture), indent=1) + "\n")
        write_card(dict(origin.card), path)
        return path

    def export(self, path: str | Path, *, format: Format = "torch") -> Path:
        """Write `module` as a program, or as a folder in Hugging Face's form.

        What is written is read back and compared with `module` on some of the images that the repair was given. It
        holds mean, standard deviation, input size and class names.

        Args:
            path: The file to write, which ends in `.pt2` for `torch` and in `.onnx` for `onnx`, or the folder for `hf`,
                which must be new, empty or an earlier export.
            format: `torch` (`torch.export`), `onnx` (which needs the extra `onnx`), or `hf`: weights in safetensors,
                `config.json` and a model card, which `timm.create_model("local-dir:FOLDER", pretrained=True)` loads if
                timm builds the DNN; if not, a warning is logged, and the card says how to load it.

        Returns:
            The path.

        Raises:
            ConfigError: The format is unknown, `path` does not fit it, or packages are missing. For `hf` also: all
                images were floats, so that mean and standard deviation are unknown.
            UserError: The DNN cannot be exported in this format, or the program has other results.
        """
        origin = self._origin
        if format not in get_args(Format):
            raise ConfigError(
                f"format={format!r} is none of {', '.join(get_args(Format))}. For weights alone, use save."
            )
        if format != "hf":
            path = with_ending(path, ENDINGS[format]).absolute()
            exported = export_program(
                origin.repaired,
                origin.images_NHWC,
                format,
                path.parent,
                class_names=origin.card["classes"],
                preprocessing=origin.preprocessing,
                name=path.name,
            )
            logger.info(exported.words)
            return path
        if origin.preprocessing["mean"] is None:
            raise ConfigError(
                "format='hf' states mean and std, and repair() was told none, since all images were floats. Give it "
                "uint8 images with mean and std, or use the formats torch or onnx, or save."
            )
        folder = export_folder(
            origin.repaired, origin.images_NHWC, Path(path), origin.card, architecture=origin.architecture
        )
        logger.log(logging.WARNING if folder.comparison is None else logging.INFO, folder.words)
        return folder.path


def with_ending(path: str | Path, ending: str) -> Path:
    """Return `path`. Raises ConfigError unless it ends so."""
    found = Path(path)
    if found.suffix.lower() != ending:
        raise ConfigError(f"{found.name!r} does not end in {ending}. Give a path that does.")
    return found

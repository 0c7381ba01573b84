"""Build the settings of `diagnose` and `fix` from a model, photographs and clean images, without a YAML file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarepair.config.data import Colour
from metarepair.shipped import shipped_photographs
from metarepair.weights import is_named
from tasks.errors import ConfigError
from tasks.storage.paths import place

NAME = "photographs"  # the environment that the user's photographs are
TABLES = (".csv", ".jsonl", ".json")  # of paths and labels


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """What a user has: a model in use, labelled photographs of the setting that it fails in, and clean images.

    Attributes:
        out: folder of the run.
        images: labelled photographs, right and wrong: a folder of class folders, a CSV, JSON Lines or Parquet file.
        only_failures: whether `images` are only those that the model got wrong.
        holdout: other photographs that only judge, in any form of `images`; None sets a fifth of `images` aside.
        clean: labelled clean images, in any form of `images`; None takes those of the kit.
        kit: the model's repair kit, which has model, weights and preprocessing, so that they need not be given.
        model: the DNN: `timm:NAME`, a name on a hub such as `hf-hub:ORG/NAME`, or `module:FACTORY`.
        weights: its weights file; None for the hub's own.
        classes: class names in the order of the model's outputs; None takes those of the clean images.
        mean: mean of the pixels as [red, green, blue], as the model was trained; None takes ImageNet's.
        std: standard deviation of the pixels, in the form of `mean`.
        image_size: side in pixels that images are resized to; None leaves them as they are.
    """

    out: str
    images: str
    clean: str | None = None
    model: str | None = None
    weights: str | None = None
    only_failures: bool = False
    holdout: str | None = None
    kit: str | None = None
    classes: tuple[str, ...] | None = None
    mean: Colour | None = None
    std: Colour | None = None
    image_size: int | None = None

    def settings(self) -> dict[str, Any]:
        """Return the settings that describe these as a run: `name`, `storage_path`, `model`, `data`, `environments`.

        Sections hold only what is given; local paths are absolute, so that the settings mean the same files from every
        folder. Raises ConfigError if `out` names no folder, or if there are no clean images.
        """
        if self.clean is None and self.kit is None:
            raise ConfigError(
                "--clean is missing. Give labelled images on which the model works as it should: they hold its "
                "accuracy during a repair, and show what the repair costs. Or give a --kit, which holds some."
            )
        root = place(self.out)
        if not root.name:
            raise ConfigError(f"--out {self.out!r} names no folder. Give one that the run may create.")
        return {
            "name": root.name,
            "storage_path": str(root.parent),
            "targets": [NAME],
            "environments": {NAME: self._environment()},
            **_given(kit=absolute(self.kit)),
            **model_settings(
                model=self.model,
                weights=absolute(self.weights),
                clean=absolute(self.clean),
                classes=self.classes,
                mean=self.mean,
                std=self.std,
                image_size=self.image_size,
            ),
        }

    def _environment(self) -> dict[str, Any]:
        kind = "table" if Path(self.images).suffix.lower() in TABLES else "images"
        holdout = None if self.holdout is None else shipped_photographs(self.holdout)
        return _given(**{kind: absolute(shipped_photographs(self.images)), "holdout": absolute(holdout)})


def absolute(text: str | None) -> str | None:
    """Return a local path as an absolute one; the name of a file, an address as s3://… and None stay as they are."""
    if text is None or is_named(text) or "://" in text:
        return text
    return str(place(text))


def model_settings(
    *,
    model: str | None,
    weights: str | None,
    clean: str | None,
    classes: tuple[str, ...] | None,
    mean: Colour | None,
    std: Colour | None,
    image_size: int | None,
) -> dict[str, Any]:
    """Return the settings `model` and `data` of a model and its clean images; a section holds only what is given."""
    data = {
        "name": None if clean is None else "images",
        "root": clean,
        "classes": classes,
        "mean": mean,
        "std": std,
        "image_size": image_size,
    }
    return _given(model=_given(name=model, weights=weights) or None, data=_given(**data) or None)


def _given(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {key: value for key, value in values.items() if value is not None}

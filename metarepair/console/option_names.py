"""Name options in place of settings, in what is said to a user who typed options and no YAML file."""

from __future__ import annotations

import argparse
import re

VERBS = ("diagnose", "fix", "kit")  # their options stand for settings
PROTECTED = "limits.protected_classes"
OPTIONS = {
    "data.classes": "--classes",
    "data.image_size": "--image-size",
    "data.mean": "--mean",
    "data.name": "--clean",
    "data.root": "--clean",
    "data.std": "--std",
    "environments.photographs.holdout": "--holdout",
    "environments.photographs.images": "--images",
    "environments.photographs.table": "--images",
    "kit": "--kit",
    "limits.max_broken": "--max-broken",
    "limits.max_clean_drop": "--max-clean-drop",
    "limits.min_gain": "--min-gain",
    PROTECTED: "--protect",
    "model.mean": "--mean",
    "model.name": "--model",
    "model.std": "--std",
    "model.weights": "--weights",
    "name": "--out",
    "refine": "--refine",
    "seed": "--seed",
    "storage_path": "--out",
    "workers": "--workers",
}
_NAME = re.compile(r"(?<![\w./-])\w+(?:(?:\.\w+)+|(?==))")  # with a dot in it, or before its value
_TWICE = re.compile(r"(--[\w-]+)(\S*) \(\1\)")


def in_options(text: str, given: argparse.Namespace) -> str:
    """Replace the settings in a message by the options of the verb `given` that stand for them."""
    if given.verb not in VERBS:
        return text
    text = text.replace("data.name and data.root", "data.root")  # one option gives both
    text = text.replace(" with --storage PATH", "")  # `--out` is named in place of the setting
    return _TWICE.sub(r"\1\2", _NAME.sub(lambda found: _named(found[0], given), text))


def _named(setting: str, given: argparse.Namespace) -> str:
    key = setting.removeprefix(f"{PROTECTED}.")
    if key != setting:
        return f"{_named(PROTECTED, given)} {key}"
    option = OPTIONS.get(setting, "--")
    typed = getattr(given, "config", None) is not None or getattr(given, "set", [])
    if not hasattr(given, _place(option)) or (typed and getattr(given, _place(option)) is None):
        return setting
    if option == "--images" and given.failures is not None:
        return "--failures"
    if option == "--clean" and None is not given.clean == getattr(given, "images", None):
        return "--images"  # photographs stand in for clean images
    return option


def _place(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")

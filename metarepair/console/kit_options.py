"""The options of `kit`, and the settings that they give."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from metarepair.console.photograph_options import add_model_options, described_model, require_model
from tasks.errors import ConfigError

if TYPE_CHECKING:
    from metarepair.config.run import Config


def add_kit_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `kit`."""
    parser.add_argument(
        "--out", metavar="FOLDER", required=True, help="folder of the kit: local, s3://… or gs://…"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings, a YAML file; the other options override it"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one setting, such as joint.rounds=40; may be repeated",
    )
    add_model_options(parser)
    parser.set_defaults(seed=None, workers=None)
    parser.add_argument("--restart", action="store_true", help="start over")
    parser.add_argument(
        "--no-images",
        dest="images",
        action="store_false",
        help="leave all images out of the kit: the clean ones and the failures",
    )
    parser.add_argument(
        "--no-failures",
        dest="failures",
        action="store_false",
        help="delete the failures of the experiences when the kit is complete; it is then small, and `refine` cannot "
        "be used with it",
    )


def load_kit_config(given: argparse.Namespace) -> Config:
    """Return the settings of the kit that the options describe. Raises ConfigError."""
    from metarepair.config.kit import kit_defaults
    from metarepair.config.load import load_config
    from metarepair.config.photographs import model_settings
    from tasks.storage.paths import place

    if given.config is None:
        remedy = "Give --model, --weights and --clean, or --config FILE with these settings."
        require_model(given, ("clean",), remedy)
    root = place(given.out)
    if not root.name:
        raise ConfigError(f"--out {given.out!r} names no folder. Give one that the kit may create.")
    return load_config(
        given.config,
        given.set,
        usual=kit_defaults(workers=given.workers or 0),
        name=root.name,
        storage_path=str(root.parent),
        seed=given.seed,
        workers=given.workers,
        **model_settings(**described_model(given)),
    )

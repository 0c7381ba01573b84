"""The options of `diagnose`, `fix` and `kit`, which take a model and images in place of a YAML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarepair.console.options import MODEL_FORMS, add_no_images_option
from metarepair.runs.amounts import read_amount
from tasks.errors import ConfigError

if TYPE_CHECKING:
    from metarepair.config.photographs import Photographs

DEFAULT_BUDGET = "10m"
_FORMS = "a folder of class folders, or a CSV, JSON Lines, Parquet or Arrow file"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a model, its clean images, and where the work is done."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        help=f"the DNN: {MODEL_FORMS}",
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="its weights, safetensors or torch.save (default: those of its hub)"
    )
    parser.add_argument(
        "--clean",
        metavar="PATH",
        help=f"labelled clean images, on which the model works as it should: {_FORMS}",
    )
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help="class names in the order of the model's outputs: a,b,c, or a text file with one name a line (default: "
        "those that its hub states, or the sorted names of the clean images' folders, or those in their schema)",
    )
    for name, what in (("mean", "mean"), ("std", "standard deviation")):
        parser.add_argument(
            f"--{name}",
            nargs=3,
            type=float,
            metavar=("R", "G", "B"),
            help=f"{what} of the pixels, 0 to 1 each, as the model was trained (default: the hub's, or ImageNet's)",
        )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="side in pixels that images are resized to (default: that of the first clean image)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of every random draw (default: 0)")
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="Ray workers (default: 0, this process, without Ray)",
    )
    parser.add_argument(
        "--address",
        help="address of a Ray cluster (default: RAY_ADDRESS, or else a local Ray on this machine)",
    )


def add_photograph_options(parser: argparse.ArgumentParser, *, out: str | None = None) -> None:
    """Add the options that `diagnose` and `fix` share; `out`: the default of --out, None if it must be given."""
    photographs = parser.add_mutually_exclusive_group(required=True)
    photographs.add_argument(
        "--images",
        metavar="PATH",
        help=f"labelled photographs, those that the model gets right included: {_FORMS}",
    )
    photographs.add_argument(
        "--failures",
        metavar="PATH",
        help="labelled photographs in place of --images, all of which the model got wrong; what a repair breaks in "
        "its environment is then unknown",
    )
    parser.add_argument(
        "--holdout",
        metavar="PATH",
        help="other photographs, which only judge (default: a fifth of --images is set aside)",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        default=out,
        required=out is None,
        help="folder to write" + ("" if out is None else f" (default: {out})"),
    )
    parser.add_argument("--kit", metavar="FOLDER", help="repair kit of the model, made by `metarepair kit`")
    parser.add_argument(
        "--budget",
        type=budget_seconds,
        default=budget_seconds(DEFAULT_BUDGET),
        metavar="TIME",
        help=f"time that a repair may take on this machine: 90s, 10m or 1h (default: {DEFAULT_BUDGET})",
    )
    add_model_options(parser)
    add_limit_options(parser)


def add_fix_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fix` alone."""
    parser.add_argument(
        "--keep-ok",
        action="store_true",
        help="exit with 0, not 3, if the repair finished and the deployed weights are kept",
    )
    parser.add_argument(
        "--drop-suspicious",
        type=int,
        default=0,
        metavar="N",
        help="leave out the N failures whose labels are most suspicious, as `diagnose` ranks them (default: 0)",
    )
    parser.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="N",
        help="episodes of meta-training from the kit's θ_meta, by what is nearest to the photographs (needs --kit)",
    )
    parser.add_argument(
        "--restart", action="store_true", help="start over: everything that `fix` made in --out"
    )
    add_no_images_option(parser)


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that set limits."""
    parser.add_argument(
        "--max-broken",
        type=float,
        metavar="SHARE",
        help="largest share of clean images, right before, that may be wrong after: the upper bound at 95%%",
    )
    parser.add_argument(
        "--max-clean-drop",
        type=float,
        metavar="SHARE",
        help="largest fall of the accuracy on clean images (default: 0.005, unless --max-broken is given)",
    )
    parser.add_argument(
        "--protect",
        action="append",
        default=[],
        metavar="CLASS=SHARE",
        help="largest fall of the recall of a class; may be repeated",
    )
    parser.add_argument(
        "--min-gain",
        type=float,
        metavar="SHARE",
        help="least gain of accuracy on the photographs (default: any above 0)",
    )


def budget_seconds(text: str) -> float:
    """Return the seconds that `90s`, `10m`, `1.5h` or `90` stand for. Raises ArgumentTypeError."""
    seconds, unit = read_amount(text.lower()) or (0.0, "")
    if unit not in ("", "s") or not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time: give seconds, minutes or hours, as 90s, 10m or 1h"
        )
    return seconds


def photographs_of(given: argparse.Namespace) -> Photographs:
    """Return what the user has. Raises ConfigError for a missing or malformed option."""
    from metarepair.config.photographs import Photographs  # it imports pyarrow, which --help does not need

    if given.kit is None:
        require_model(given, (), "Give the model and its weights, or a --kit of the model.")
    return Photographs(
        out=given.out,
        images=given.images or given.failures,
        only_failures=given.failures is not None,
        holdout=given.holdout,
        kit=given.kit,
        **described_model(given),
    )


def described_model(given: argparse.Namespace) -> dict[str, Any]:
    """Return what the options of `add_model_options` say of a model and its clean images. Raises ConfigError."""
    return {
        "model": given.model,
        "weights": given.weights,
        "clean": given.clean,
        "classes": class_names(given.classes),
        "mean": None if given.mean is None else tuple(given.mean),
        "std": None if given.std is None else tuple(given.std),
        "image_size": given.image_size,
    }


def require_model(given: argparse.Namespace, others: Sequence[str], remedy: str) -> None:
    """Raise ConfigError, which ends with `remedy`, unless a model, its weights and these other options are given.

    A model of a hub has weights there.
    """
    from metarepair.weights.hub import is_hub  # it imports pyarrow, too

    for option in ("model", *(() if is_hub(given.model) else ("weights",)), *others):
        if getattr(given, option) is None:
            raise ConfigError(f"--{option} is missing. {remedy}")


def limits_of(given: argparse.Namespace) -> dict[str, Any]:
    """Return the settings `limits` of what is given."""
    from metarepair.config.limits import user_limits

    return user_limits(
        max_broken=given.max_broken,
        max_clean_drop=given.max_clean_drop,
        protected_classes=dict(map(_protected, given.protect)),
        min_gain=given.min_gain,
    )


def shared_settings(given: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a run that the shared options give; the verb adds those of its stages."""
    settings = photographs_of(given).settings()
    return settings | {"seed": given.seed, "workers": given.workers, "limits": limits_of(given)}


def class_names(text: str | None) -> tuple[str, ...] | None:
    """Return the names in `a,b,c`, or in a text file with one name a line. Raises ConfigError."""
    if text is None:
        return None
    path = Path(text).expanduser()
    try:
        names = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--classes {text}: the file cannot be read ({error}). Give a text file in UTF-8."
        ) from error
    found = tuple(name.strip() for name in names if name.strip())
    if len(found) < 2:
        raise ConfigError(
            f"--classes {text} gives {len(found)} name. Give two or more, as a,b,c, or a text file with one a line."
        )
    return found


def _protected(text: str) -> tuple[str, float]:
    """The class and the share in `cat=0.02`. Raises ConfigError."""
    name, equals, share = text.rpartition("=")
    try:
        if equals and name:
            return name, float(share)
    except ValueError:
        pass
    raise ConfigError(f"--protect {text}: give a class and the largest fall of its recall, as cat=0.02.")

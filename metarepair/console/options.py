"""A verb's parser in, its own options added out. Those that most verbs share are in cli.py."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_corruption_options(parser: argparse.ArgumentParser) -> None:
    """Of `corruptions`."""
    parser.add_argument("--list", action="store_true", help="names, short names, categories and constants")
    parser.add_argument("--image", type=Path, metavar="FILE", help="an image to corrupt in every way")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the contact sheet goes: .png or .jpg")
    parser.add_argument(
        "--table",
        help="constants for images of 32, 64 or 224 px: cifar, tinyimagenet or imagenet (the nearest)",
    )
    parser.add_argument("--seed", type=int, default=0, help="key of every draw (0)")


def add_comparison_options(parser: argparse.ArgumentParser) -> None:
    """Of `compare`."""
    parser.add_argument(
        "--budget",
        metavar="AMOUNT",
        help="what each repair may take: 60s, 500steps (of gradients) or 100000images (overrides compare.budget)",
    )
    parser.add_argument(
        "--pair",
        nargs=2,
        metavar="METHOD",
        help="of a comparison that is done: these two, example by example, for every target and the first seed",
    )


def add_inspection_options(parser: argparse.ArgumentParser) -> None:
    """Of `inspect`."""
    parser.add_argument(
        "path",
        metavar="PATH",
        help="a run (STORAGE/NAME), a folder in it, or an .arrow, .parquet or .safetensors file of it",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the text")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw collected failures: .png or .jpg")
    parser.epilog = (
        "Nothing is changed. D_fail stays closed: its bytes are checked and its counts are the manifest's; classes and "
        "the sheet are of D_collect. The exit code is 2 when a file is not as its manifest promises."
    )


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Of `export`."""
    parser.add_argument("path", metavar="RUN_OR_WEIGHTS", help="a run (STORAGE/NAME), or a model.safetensors")
    parser.add_argument(
        "--format",
        required=True,
        choices=("torch", "onnx", "original"),
        help="a program of torch.export or ONNX, checked on real images; or model.weights' own names and wrapping",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="where it goes")
    parser.add_argument("--config", type=Path, metavar="FILE", help="model and data of weights outside a run")


def add_settings_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Settings from a YAML file, some of them given directly; `doctor` does without a file."""
    parser.add_argument("--config", required=required, type=Path, metavar="FILE", help="YAML settings")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting, as train.episodes=20",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the DNN: timm:NAME, or module:FACTORY, the import path of what returns an nn.Module",
    )
    parser.add_argument("--weights", metavar="FILE", help="its weights: .safetensors, or of torch.save")


def add_verbosity_options(parser: argparse.ArgumentParser) -> None:
    """How much is printed."""
    amount = parser.add_mutually_exclusive_group()
    for name, help_text in (
        ("quiet", "print results, warnings and errors alone"),
        ("verbose", "print each line's time and module, and what Ray and its workers print"),
    ):
        amount.add_argument(
            f"--{name}",
            dest="verbosity",
            action="store_const",
            const=name,
            default="usual",
            help=help_text,
        )

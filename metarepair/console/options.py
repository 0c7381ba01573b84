"""Add the options of single verbs to their parsers. The options that most verbs share are in cli.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from metarepair.console.completion import SHELLS, keys_completer, settings_completer

MODEL_FORMS = (
    "timm:NAME; a name on a hub, hf-hub:ORG/NAME (timm), hf:ORG/NAME (transformers) or torchvision:NAME; or "
    "module:FACTORY, the import path of a function or class that returns an nn.Module"
)


def add_corruption_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `corruptions`."""
    parser.add_argument(
        "--list", action="store_true", help="list names, short names, categories and constants"
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="image to show under every corruption")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="contact sheet to write, .png or .jpg (needs --image)"
    )
    parser.add_argument(
        "--table",
        help="constants of the corruptions, made for 32, 64 or 224 px: cifar, tinyimagenet or imagenet (default: by "
        "the image's size; cifar for --list)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of every random draw (default: 0)")


def add_comparison_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `compare`."""
    parser.add_argument(
        "--budget",
        metavar="AMOUNT",
        help="limit of each repair: 60s, 60core-s (processor time), 500steps (gradient steps) or 100000images "
        "(overrides compare.budget)",
    )
    parser.add_argument(
        "--preparation-budget",
        metavar="CORE_SECONDS",
        type=float,
        help="core-seconds that each method spends on its preparation for all targets together (overrides "
        "preparation_budget)",
    )
    parser.add_argument(
        "--pair",
        nargs=2,
        metavar="METHOD",
        help="draw two methods of a finished comparison example by example, for every target and the first seed",
    )


def add_inspection_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `inspect`."""
    parser.add_argument(
        "path",
        metavar="PATH",
        help="a run (STORAGE/NAME), a folder in it, or one of its .arrow, .parquet or .safetensors files",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the text")
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE", help="draw collected failures into FILE, .png or .jpg"
    )
    parser.epilog = (
        "Nothing is changed. D_fail is not opened: only its checksum is verified, and its counts come from the "
        "manifest; classes and the sheet are those of D_collect. The exit code is 2 if a file differs from its "
        "manifest."
    )


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    parser.add_argument("path", metavar="RUN_OR_WEIGHTS", help="a run (STORAGE/NAME) or a model.safetensors")
    parser.add_argument(
        "--format",
        required=True,
        choices=("torch", "onnx", "original", "hf"),
        help="torch.export or ONNX program, checked on real images; original: tensor names and layout of the file "
        "model.weights; hf: a folder of weights, config.json and model card, which timm loads",
    )
    parser.add_argument(
        "--out", required=True, metavar="PATH", help="file to write, or with --format hf the folder"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML settings with model and data, for weights outside a run",
    )
    parser.add_argument(
        "--push",
        metavar="ORG/NAME",
        help="upload the folder of --format hf to this repository of Hugging Face's Hub; shows first what would be "
        "sent, and asks",
    )
    parser.add_argument("--public", action="store_true", help="make the repository public (default: private)")
    parser.add_argument("--yes", action="store_true", help="upload without asking, as in a script")


def add_settings_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the options that give settings; `required`: whether the YAML file is required."""
    parser.add_argument(
        "--config", required=required, type=Path, metavar="FILE", help="settings, a YAML file"
    )
    override = parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one setting, such as train.episodes=20; may be repeated",
    )
    override.completer = settings_completer  # type: ignore[attr-defined]  # argcomplete reads it
    parser.add_argument(
        "--model",
        metavar="NAME",
        help=f"the DNN: {MODEL_FORMS} (overrides model.name)",
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="its weights, safetensors or torch.save (overrides model.weights)"
    )


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `config`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--schema", action="store_true", help="print the JSON Schema of the settings, for an editor"
    )
    explained = what.add_argument(
        "--explain",
        metavar="KEY",
        help="say what a setting, such as train.episodes, means and allows; of a section, its keys",
    )
    explained.completer = keys_completer  # type: ignore[attr-defined]  # argcomplete reads it


def add_init_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `init`."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("my_repair.yaml"),
        metavar="FILE",
        help="file to write, which must not exist (default: my_repair.yaml)",
    )
    for name, metavar, what in (
        ("images", "PATH", "labelled photographs that the model fails on, with those that it gets right"),
        ("clean", "PATH", "labelled clean images, on which the model works as it should"),
        (
            "model",
            "NAME",
            "the DNN: timm:NAME, hf-hub:ORG/NAME, hf:ORG/NAME, torchvision:NAME, or module:FACTORY",
        ),
        ("weights", "FILE", "its weights, safetensors or torch.save"),
    ):
        parser.add_argument(f"--{name}", metavar=metavar, help=f"{what} (default: a placeholder)")


def add_completion_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `completion`."""
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    parser.epilog = (
        'bash and zsh: eval "$(metarepair completion bash)" in ~/.bashrc, or with zsh in ~/.zshrc after compinit. '
        "fish: metarepair completion fish > ~/.config/fish/completions/metarepair.fish"
    )


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `report` alone."""
    parser.add_argument(
        "--out", metavar="FOLDER", help="write the report there, and nothing into the run's folder"
    )
    parser.add_argument("--open", action="store_true", help="open the report in a browser")


def add_no_images_option(parser: argparse.ArgumentParser) -> None:
    """Add `--no-images`."""
    parser.add_argument(
        "--no-images",
        dest="show_images",
        action="store_false",
        help="leave images of the data and paths of this machine out of the report",
    )


def add_verbosity_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for how much is printed."""
    amount = parser.add_mutually_exclusive_group()
    for name, help_text in (
        ("quiet", "print only results, warnings and errors"),
        (
            "verbose",
            "also print debug lines, the time and module of each line, and the output of Ray and its workers",
        ),
    ):
        amount.add_argument(
            f"--{name}",
            dest="verbosity",
            action="store_const",
            const=name,
            default="usual",
            help=help_text,
        )

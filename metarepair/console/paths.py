"""Check the local files and folders that the settings name, within a second and without torch.

The command line calls this before it imports torch, timm or Ray. The stages check the same places again when they read
them. Paths on an object store are left to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metarepair.config.load import load_config
from metarepair.config.run import Config
from metarepair.runs.layout import run_of
from metarepair.weights import extractor_file, resolve_weights
from tasks.datasets import check_folders
from tasks.datasets.archives import archive_folder
from tasks.errors import ConfigError, StageError, WeightsError, unknown_name
from tasks.storage.paths import place


def check_paths(config: Config, verb: str) -> None:
    """Raise WeightsError or DataError for the first path that `verb` would read and that is missing here."""
    if verb == "report":  # it reads what the run holds
        return
    if verb != "pretrain":
        resolve_weights(config.model.weights)
        _check_extractor_weights(config)
        if config.data.archive is not None:
            archive_folder(Path(config.data.archive).expanduser())
    check_folders(config.data.source())


def check_pair(config: Config, pair: Sequence[str]) -> None:
    """Raise ConfigError unless `pair` is two compared methods, StageError when the run holds no comparison yet."""
    for name in pair:
        if name not in config.compare.methods:
            raise ConfigError(
                f"--pair: {unknown_name('method of compare.methods', name, config.compare.methods)}"
            )
    if len(set(pair)) < len(pair):
        raise ConfigError(f"--pair {' '.join(pair)}: name two methods.")
    run = run_of(config)
    if not run.compare.exists():
        raise StageError(f"{run.root} holds no comparison. Repair first: metarepair compare --config …")


def check_export(what: str, config_file: Path | None) -> None:
    """Raise ConfigError when the run or weights file to export is not there, or `config_file` is no settings."""
    path = place(what)
    if isinstance(path, Path) and not path.exists():
        raise ConfigError(
            f"{path} is neither a weights file nor a run: it is not there. Give STORAGE/NAME "
            "of a run that is repaired, or a model.safetensors."
        )
    if config_file is not None:
        load_config(config_file, [])


def _check_extractor_weights(config: Config) -> None:
    """Of `deployed`, whose weights are model.weights, the extractor itself says that none are to be given."""
    weights, extractor = config.features.weights, config.features.extractor
    if weights is None or extractor == "deployed":
        return
    if extractor != "inception":
        extractor_file(extractor, weights)
    elif not Path(weights).expanduser().exists():
        raise WeightsError(
            f"no FID Inception weights in {weights}: nothing is there. Give features.weights the file or the folder "
            "that holds it, or leave it out to have the usual places searched."
        )

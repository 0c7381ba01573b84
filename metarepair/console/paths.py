"""Check the local files and folders that the settings name, within a second and without torch.

The command line calls this before it imports torch, timm or Ray. The stages check the same paths again when they read
them; they alone check paths on an object store.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metarepair.config.load import load_config
from metarepair.config.run import Config
from metarepair.runs.layout import run_of
from metarepair.weights import extractor_file, resolve_weights, start_file
from tasks.datasets import check_folders
from tasks.datasets.archives import archive_folder
from tasks.errors import ConfigError, StageError, WeightsError, unknown_name
from tasks.storage.paths import place, refuse_special

WITHOUT_A_KIT = ("pretrain", "hypothesis", "tune", "kit")


def check_paths(config: Config, verb: str) -> None:
    """Raise WeightsError or DataError for the first path that `verb` would read and that does not exist."""
    if verb == "report":  # it reads only the run
        return
    if not config.targets and verb != "kit":
        raise ConfigError("targets=[]: it must have 1 or more entries; only `metarepair kit` needs none")
    if config.kit is not None and verb in WITHOUT_A_KIT:
        raise ConfigError(
            f"kit={config.kit!r}: `metarepair {verb}` makes what it needs itself. Leave kit out."
        )
    _check_names(config)
    if verb != "pretrain":
        resolve_weights(config.model.weights)
        start_file(config.train.start)
        _check_extractor_weights(config)
        if config.data.archive is not None:
            archive_folder(Path(config.data.archive).expanduser())
    check_folders(config.data.source())


def _check_names(config: Config) -> None:
    """Raise ConfigError for a path that the system refuses to look up: too long, forbidden, ~ of an unknown user."""
    data = config.data
    named = {
        "model.weights": config.model.weights,
        "train.start": config.train.start,
        "features.weights": config.features.weights,
        "data.root": data.root,
        "data.train": data.train,
        "data.test": data.test,
        "data.archive": data.archive,
    }
    for name, path in named.items():
        try:
            Path(path or "").expanduser().exists()
        except (OSError, RuntimeError) as error:
            why = getattr(error, "strerror", None) or "the home folder of an unknown user"
            raise ConfigError(
                f"{name}={path!r} cannot be looked up ({why}). Name a file or folder that you can read."
            ) from error


def check_pair(config: Config, pair: Sequence[str]) -> None:
    """Raise ConfigError unless `pair` is two compared methods, StageError if the run holds no comparison yet."""
    for name in pair:
        if name not in config.compare.methods:
            raise ConfigError(
                f"--pair: {unknown_name('method of compare.methods', name, config.compare.methods)}"
            )
    if len(set(pair)) < len(pair):
        raise ConfigError(f"--pair {' '.join(pair)}: name two different methods.")
    run = run_of(config)
    if not run.compare.exists():
        raise StageError(f"{run.root} holds no comparison. Repair first: metarepair compare --config …")


def check_export(what: str, config_file: Path | None, *, out: str) -> None:
    """Raise ConfigError if the run or weights file to export does not exist, or `config_file` or `out` is not valid."""
    path, target = place(what), place(out)
    if isinstance(path, Path) and not path.exists():
        raise ConfigError(
            f"{path} does not exist. Give STORAGE/NAME of a repaired run, or a model.safetensors."
        )
    if isinstance(target, Path):
        refuse_special(target)
    if config_file is not None:
        load_config(config_file, [])


def _check_extractor_weights(config: Config) -> None:
    """Check features.weights; the extractor `deployed`, which uses model.weights, itself refuses them."""
    weights, extractor = config.features.weights, config.features.extractor
    if weights is None or extractor == "deployed":
        return
    if extractor != "inception":
        extractor_file(extractor, weights)
    elif not Path(weights).expanduser().exists():
        raise WeightsError(
            f"no FID Inception weights in {weights}: the path does not exist. Set features.weights to the file or the "
            "folder that holds it, or leave it out to search the usual places."
        )

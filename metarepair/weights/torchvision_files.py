"""Find torchvision's models, and their weights in torch hub's cache or by a download, checked by the hash in the name.

Source: https://docs.pytorch.org/vision/stable/models.html (get_model, WeightsEnum); torch.hub's cache, TORCH_HOME.
"""

from __future__ import annotations

import hashlib
import logging
import socket
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torchvision.models
from torch.hub import HASH_REGEX, download_url_to_file

from metarepair.weights.hub import TORCHVISION
from tasks.errors import ConfigError, WeightsError, near_names

logger = logging.getLogger(__name__)


def torchvision_name(name: str) -> str:
    """The name of a classifier in torchvision:NAME. Raises ConfigError, with the nearest names, if there is none."""
    found, known = name.removeprefix(TORCHVISION), torchvision.models.list_models(torchvision.models)
    if found not in known:
        raise ConfigError(
            f"no classifier {found!r} in torchvision {torchvision.__version__}{near_names(found, known) or '.'} "
            "`torchvision.models.list_models()` lists all. Give torchvision:NAME, as in torchvision:resnet18."
        )
    return found


def default_weights(name: str) -> str:
    """The best published weights of torchvision:NAME, as a value of model.weights. Raises ConfigError as above."""
    best = torchvision.models.get_model_weights(torchvision_name(name)).DEFAULT
    return f"{TORCHVISION}{type(best).__name__}.{best.name}"


def torchvision_weights(weights: str) -> Path:
    """The path of published weights in torch hub's cache; they are downloaded if it lacks them.

    Raises ConfigError for an unknown name; WeightsError with the remedy if they are missing here and cannot be
    downloaded, or if they are damaged.
    """
    url: str = _entry(weights).url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        _download(url, path, weights)
    if not _is_whole(path, path.stat().st_mtime_ns):
        raise WeightsError(
            f"{weights}: {path} is damaged: its SHA-256 does not begin as its name says. Delete it, and download it "
            f"again from {url}"
        )
    return path


def torchvision_facts(weights: str) -> dict[str, Any]:
    """What torchvision states of published weights: `num_classes`, `classes`, `mean`, `std` and `input_size`."""
    entry = _entry(weights)
    prepare, names = entry.transforms(), entry.meta["categories"]
    return {
        "num_classes": len(names),
        "classes": tuple(names),
        "mean": tuple(prepare.mean),
        "std": tuple(prepare.std),
        "input_size": prepare.crop_size[0],
    }


def _entry(weights: str) -> Any:
    name, known = weights.removeprefix(TORCHVISION), _entries()
    if name not in known:
        raise ConfigError(
            f"no weights {name!r} in torchvision {torchvision.__version__}{near_names(name, known) or '.'} Give "
            "torchvision:WEIGHTS.ENTRY, as in torchvision:ResNet18_Weights.IMAGENET1K_V1."
        )
    return known[name]


@lru_cache(maxsize=1)
def _entries() -> dict[str, Any]:
    """All published weights with a classifier, by the name that torchvision.models.get_weight takes."""
    kinds = map(torchvision.models.get_model_weights, torchvision.models.list_models(torchvision.models))
    members = [
        (f"{kind.__name__}.{name}", entry) for kind in kinds for name, entry in kind.__members__.items()
    ]
    return {name: entry for name, entry in members if entry.meta["categories"]}


def _download(url: str, path: Path, weights: str) -> None:
    logger.info(f"download {weights}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(url, str(path), hash_prefix=_hash(path), progress=False)
    except (OSError, RuntimeError) as error:  # no network; other bytes than the name says
        raise WeightsError(
            f"{weights} is not in the cache of {socket.gethostname()} ({path.parent}), and the download failed "
            f"({error}). On a machine with internet: wget {url}. Then put it there, or set TORCH_HOME to the folder "
            "that holds hub/checkpoints (on a cluster: on every node)."
        ) from error


def _hash(path: Path) -> str | None:
    found = HASH_REGEX.search(path.name)
    return found[1] if found else None


@lru_cache(maxsize=16)
def _is_whole(path: Path, changed_ns: int) -> bool:  # noqa: ARG001  of the cache
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest().startswith(_hash(path) or "")

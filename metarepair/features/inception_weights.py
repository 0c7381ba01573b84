"""Finds the weights file of the published FID Inception, or downloads and checks it.

The order is METAREPAIR_WEIGHTS, the user's cache, torch.hub's cache, then the releases of two projects, which publish
the same bytes. Legend: one MB is 10⁶ bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.request import Request, urlopen
from uuid import uuid4

import torch

from metarepair.runs.progress import Progress
from tasks.errors import WeightsError

VARIABLE = "METAREPAIR_WEIGHTS"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIZE_BYTES = 95_628_359
TIMEOUT_S = 30.0  # without receiving a byte
_NAME, _RELEASES = f"inception-2015-12-05-{SHA256[:8]}.pth", "releases/download"
PUBLISHED = {
    "pytorch-fid": f"https://github.com/mseitzer/pytorch-fid/{_RELEASES}/fid_weights/pt_{_NAME}",
    "torch-fidelity": f"https://github.com/toshas/torch-fidelity/{_RELEASES}/v0.2.0/weights-{_NAME}",
}
FILE_NAMES = tuple(
    Path(url).with_suffix(suffix).name for suffix in (".pth", ".safetensors") for url in PUBLISHED.values()
)
MB = 10**6


def obtain_fid_inception(path: Path | None) -> Path:
    """The file that `find_fid_inception` finds, or else a download into the user's cache.

    Nothing is downloaded if `path` or METAREPAIR_WEIGHTS names a place, so that a misspelt name does not cost a
    download. Raises WeightsError with the remedy if there is no file.
    """
    file = _first(_places(path))
    if file is not None:
        return file
    if path is not None or os.environ.get(VARIABLE):
        raise _missing(path)
    return download_fid_inception()


def find_fid_inception(path: Path | None) -> Path:
    """The weights file, without a download. Raises WeightsError with the places searched and the remedy.

    If `path` is given, only it is searched. Otherwise the places are METAREPAIR_WEIGHTS, the user's cache and
    torch.hub's cache, where torch-fidelity and torchmetrics keep the same file. `path` and METAREPAIR_WEIGHTS are each
    a .pth or .safetensors file, or a folder that holds one under a published name.
    """
    file = _first(_places(path))
    if file is None:
        raise _missing(path)
    return file


def download_fid_inception(folder: Path | None = None) -> Path:
    """Download the weights (96 MB) into `folder` (None: the user's cache), with progress on standard error.

    The file appears there only when it is complete and has the published SHA-256. If the first project's download
    fails, the second is tried. Raises WeightsError, with the reasons and the remedy, if both fail.
    """
    folder = folder or cache_folder()
    reasons = []
    for url in PUBLISHED.values():
        try:
            return _fetch(url, folder)
        except (OSError, HTTPException, ValueError) as error:  # no network, a broken response, other bytes
            reasons.append(f"{url} ({error or type(error).__name__})")
    raise WeightsError(
        f"the FID Inception's weights could not be downloaded into {folder}: {'; '.join(reasons)}. {_remedy()}"
    )


def cache_folder() -> Path:
    """The user's cache for this program: below XDG_CACHE_HOME, or ~/.cache if that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metarepair"


def _places(path: Path | None) -> list[Path]:
    if path is not None:
        return [path]
    named = Path(os.environ[VARIABLE]).expanduser() if os.environ.get(VARIABLE) else None
    if named is not None and not named.is_dir():
        return [named]  # a file that is named and does not exist is an error, even if a cache has it
    caches = [cache_folder(), Path(torch.hub.get_dir()) / "checkpoints"]
    return caches if named is None else [named, *caches]


def _first(places: Sequence[Path]) -> Path | None:
    files = (file for place in places for file in (place, *(place / name for name in FILE_NAMES)))
    return next((file for file in files if file.is_file()), None)


def _missing(path: Path | None) -> WeightsError:
    searched = ", ".join(map(str, _places(path)))
    return WeightsError(f"no FID Inception weights in {searched}. {_remedy()}")


def _remedy() -> str:
    return (
        f"Get {' or '.join(PUBLISHED.values())} (the same bytes; SHA-256 {SHA256}), and put it into "
        f"{cache_folder()} under its own name, or set {VARIABLE} to it (the file or its folder). With a network "
        f"and without {VARIABLE}, it is downloaded when it is first needed. Or choose other features: "
        "efficientnet_lite0, timm:NAME or deployed"
    )


def _fetch(url: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    # A name that no search mistakes for the file, and that no other download into the folder uses.
    part = folder / f".download-{uuid4().hex}.tmp"
    try:
        request = Request(url, headers={"User-Agent": "metarepair"})
        with urlopen(request, timeout=TIMEOUT_S) as answer, part.open("xb") as file:
            _copy(answer, file, int(answer.headers.get("Content-Length") or SIZE_BYTES))
        return part.replace(folder / Path(url).name)
    finally:  # after Ctrl-C as well
        part.unlink(missing_ok=True)


def _copy(source: IO[bytes], part: IO[bytes], size_bytes: int) -> None:
    """Copy all of `source` into `part`. Raises ValueError unless it has the published SHA-256."""
    progress = Progress("FID Inception weights", -(-size_bytes // MB), "MB")
    digest, count = hashlib.sha256(), 0
    while block := source.read(MB):
        part.write(block)
        digest.update(block)
        count += len(block)
        progress.advance(
            count // MB - progress.done if count < size_bytes else progress.total - progress.done
        )
    if digest.hexdigest() != SHA256:
        problem = f"it ended after {count:,} of {size_bytes:,} bytes" if count < size_bytes else "other bytes"
        raise ValueError(f"{problem}: SHA-256 {digest.hexdigest()[:16]}… instead of {SHA256[:16]}…")

"""Find the files of a model on the Hugging Face Hub: in its cache, or by a download. Imports no torch.

Only JSON and safetensors are read, never a pickle. A blob of the cache is named by its digest, so a damaged file is
recognised. Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache (models--ORG--NAME, with blobs, refs
and snapshots, in the folder that HF_HUB_CACHE or HF_HOME names).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError, WeightsError, near_names, unreadable

logger = logging.getLogger(__name__)

TIMM, TIMM_HUB, TRANSFORMERS, TORCHVISION = "timm:", "hf-hub:", "hf:", "torchvision:"
HUBS = (TIMM_HUB, TRANSFORMERS, TORCHVISION)
KINDS = (TIMM, *HUBS)  # what else than a module to import stands before a colon in model.name
EXAMPLE = "hf-hub:timm/resnet18.a1_in1k, hf:microsoft/resnet-18 or torchvision:resnet18"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
LONGEST_REASON = 300  # characters of what the client says
LARGEST_JSON = 16 << 20  # bytes; ImageNet-21k's class names have 1 MB
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]{0,199}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{4,39}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class HubError(WeightsError):
    """A file of the hub is missing here, damaged, or of a kind that is not read."""


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A model on the hub: a repository of timm (`hf-hub:`) or of transformers (`hf:`), at a revision."""

    kind: str
    repository: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"{self.kind}{self.repository}@{self.revision}"

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a commit, whose files never change."""
        return _COMMIT.fullmatch(self.revision) is not None

    @property
    def download(self) -> str:
        """The command that downloads the model."""
        files = f"{CONFIG} {WEIGHTS}{' preprocessor_config.json' if self.kind == TRANSFORMERS else ''}"
        return f"hf download {self.repository} {files} --revision {self.revision}"


def is_hub(text: object) -> bool:
    """Whether a model or a weights file is named by a hub, not by a path, timm or a module to import."""
    return isinstance(text, str) and text.startswith(HUBS)


def read_hub_name(text: str) -> HubName:
    """Return the parts of hf-hub:ORG/NAME[@REVISION] or hf:ORG/NAME[@REVISION]. Raises ConfigError."""
    kind, _, rest = text.partition(":")
    repository, at, revision = rest.partition("@")
    if not is_repository(repository):
        raise ConfigError(
            f"{text!r} does not name a model of the hub: give {kind}:ORG/NAME or {kind}:ORG/NAME@REVISION, as in "
            f"{EXAMPLE}."
        )
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise ConfigError(
            f"{text!r}: {revision!r} is not a revision. Give a branch, a tag or a commit after the @, as in "
            f"{kind}:{repository}@main."
        )
    return HubName(kind=f"{kind}:", repository=repository, revision=revision or "main")


def is_repository(text: str) -> bool:
    """Whether a text is ORG/NAME as the hub takes it; the client's own check lets names without ORG pass."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not in __all__

    if not _REPOSITORY.fullmatch(text):
        return False
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def pinned(name: HubName) -> HubName:
    """The same model at the commit that its revision stands for in the cache, or else on the hub."""
    if name.is_commit:
        return name
    commit = hub_file(name, CONFIG).parent.name
    return HubName(kind=name.kind, repository=name.repository, revision=commit)


def hub_file(name: HubName, file: str) -> Path:
    """The path of a repository's file in the cache; it is downloaded if the cache lacks it.

    Raises HubError with the remedy if it is missing here and cannot be downloaded, or if the cache is damaged.
    """
    try:
        path = _cached(name, file) or _downloaded(name, file)
        _check_whole(path, name)
    except (OSError, UnicodeDecodeError) as error:
        at = getattr(error, "filename", None) or _folder(name) / "refs" / name.revision
        raise HubError(
            f"{name}: {unreadable(at, error)}. Make it readable, or delete it and download again: {name.download}"
        ) from error
    return path


def hub_json(name: HubName, file: str) -> dict[str, Any]:
    """The content of a JSON file of a repository. Raises HubError as `hub_file` does, and for anything else."""
    path = hub_file(name, file)
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HubError(f"{name}: {file} is not JSON ({error}). Give a revision in which it is.") from error
    if not isinstance(content, dict):
        raise HubError(f"{name}: {file} holds no settings by name. Give a revision in which it does.")
    return content


def hub_weights(name: HubName) -> Path:
    """The path of a repository's `model.safetensors`.

    Raises HubError as `hub_file` does, and if the cache has only pickles of this revision, or several files.
    """
    try:
        return hub_file(name, WEIGHTS)
    except HubError as error:
        others = _cached_files(name)
        if INDEX in others:
            raise HubError(
                f"{name} has its weights in several files ({INDEX}), and one is read. Save it as one file "
                f"(max_shard_size), and give that as model.weights."
            ) from error
        pickles = [file for file in others if file.endswith(PICKLES)]
        if pickles:
            has = f"only a pickle, {pickles[0]}, in the cache, and loading a pickle can run code"
            raise HubError(_needs_safetensors(name, has)) from error
        raise


def blob_sha256(path: Path) -> str | None:
    """The SHA-256 by which the cache names a file, None if it does not."""
    blob = _blob(path)
    return blob if blob is not None and _SHA256.fullmatch(blob) else None


def _cached(name: HubName, file: str) -> Path | None:
    """The path of a file in the cache. Raises OSError or UnicodeDecodeError if the cache cannot be read."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name.repository, file, revision=name.revision)
    return Path(found) if isinstance(found, str) else None


def _downloaded(name: HubName, file: str) -> Path:
    from huggingface_hub import errors, hf_hub_download, is_offline_mode

    if is_offline_mode():
        raise HubError(_missing(name, file, "HF_HUB_OFFLINE is set"))
    logger.info(f"download {file} of {name}")
    try:
        with _silent_client():
            return Path(hf_hub_download(name.repository, file, revision=name.revision))
    except errors.RevisionNotFoundError as error:
        raise HubError(
            f"{name}: the hub has no revision {name.revision!r} of {name.repository}. Give a branch, a tag or a commit."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{name}: the hub has no model {name.repository}, or it needs permission{_near(name) or '.'} Check the "
            "name, or log in: hf auth login."
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise HubError(
            _needs_safetensors(name, f"no {WEIGHTS}")
            if file == WEIGHTS
            else f"{name} has no {file}, so its model is unknown. Give a revision that has it."
        ) from error
    except errors.LocalEntryNotFoundError as error:  # for no network; its cause says more
        raise HubError(_failed(name, file, error.__cause__ or error)) from error
    except Exception as error:  # of the client's transport: a broken answer, a full disk
        raise HubError(_failed(name, file, error)) from error


@contextmanager
def _silent_client() -> Iterator[None]:
    """Keep the client from logging what our own error tells: every failure and every retry."""
    from huggingface_hub import logging as client

    before = client.get_verbosity()
    client.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        client.set_verbosity(before)


def _failed(name: HubName, file: str, error: BaseException) -> str:
    return _missing(name, file, f"the download failed ({type(error).__name__}: {_sentences(str(error))})")


def _sentences(text: str) -> str:
    """The first sentences, whole if they are not too long, in one line."""
    line = " ".join(text.split())
    if len(line) <= LONGEST_REASON:
        return line
    whole = re.match(rf".{{,{LONGEST_REASON - 1}}}[.!?](?= )", line)
    return whole[0] if whole else f"{line[:LONGEST_REASON]}…"


def _missing(name: HubName, file: str, why: str) -> str:
    return (
        f"{name}: {file} is not in the cache of {socket.gethostname()} ({cache_folder()}), and {why}"
        f"{_near(name) or '.'} On a machine with internet: {name.download}. Then copy its cache here, and set "
        "HF_HUB_CACHE to that folder (on a cluster: on every node)."
    )


def _needs_safetensors(name: HubName, has: str) -> str:
    return (
        f"{name} has {has}. Only safetensors are read. Give a revision with {WEIGHTS} (such as @refs/pr/1), or convert "
        "the weights, and give the file as model.weights."
    )


def cache_folder() -> Path:
    """The hub's cache on this machine, as huggingface_hub finds it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def _cached_files(name: HubName) -> list[str]:
    """The files of this revision in the cache."""
    try:
        config = _cached(name, CONFIG)
        return [] if config is None else sorted(path.name for path in config.parent.iterdir())
    except (OSError, UnicodeDecodeError):
        return []


def _near(name: HubName) -> str:
    """`; did you mean 'x'?` for models in the cache, or for other revisions of this one."""
    folder = _folder(name)
    if folder.is_dir():
        refs = folder / "refs"
        known = {path.relative_to(refs).as_posix() for path in refs.rglob("*") if path.is_file()}
        known |= {path.name for path in (folder / "snapshots").glob("*")}
        if _SHORT_COMMIT.fullmatch(name.revision):
            whole = sorted(one for one in known if _COMMIT.fullmatch(one) and one.startswith(name.revision))
            if whole:
                return f"; did you mean {' or '.join(map(repr, whole))}?"
        return near_names(name.revision, sorted(known - {name.revision}))
    cached = (path.name.split("--", 2)[1:] for path in cache_folder().glob("models--*--*"))
    return near_names(name.repository, ["/".join(parts) for parts in cached])


def _folder(name: HubName) -> Path:
    return cache_folder() / f"models--{name.repository.replace('/', '--')}"


def _blob(path: Path) -> str | None:
    """The name of the blob that a file of a snapshot links to; None for a copied cache without links."""
    return path.readlink().name if path.is_symlink() else None


def _check_whole(path: Path, name: HubName) -> None:
    """Raise HubError if a file of the cache differs from the digest that names its blob."""
    blob = _blob(path)
    if blob is None:
        return
    found = path.stat()
    digest = _digest(path.resolve(), len(blob), found.st_size, found.st_mtime_ns)
    if digest not in (None, blob):
        raise HubError(
            f"{path} is damaged: its digest is {digest}, and the hub's is {blob}. Delete it and {path.resolve()}, and "
            f"download it again: {name.download}"
        )


@lru_cache(maxsize=64)
def _digest(path: Path, length: int, size_bytes: int, changed_ns: int) -> str | None:  # noqa: ARG001  of the cache
    """SHA-256 of a large file, or git's digest of a small one, by the length of the blob's name; None for others."""
    if length not in (40, 64):
        return None
    digest = hashlib.sha256() if length == 64 else hashlib.sha1(f"blob {size_bytes}\0".encode())
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: digest).hexdigest()

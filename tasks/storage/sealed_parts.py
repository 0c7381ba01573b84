"""Seal the finished parts of an unfinished stage: a file beside each part identifies it and has its digest.

A manifest is written only when a stage is done; until then each part carries its own proof. A part that was damaged,
swapped with another, or made with other settings is not accepted as the part that is needed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from tasks.storage.manifest import content_hash, file_hash
from tasks.storage.paths import Place, read_json, write_text

logger = logging.getLogger(__name__)
SUFFIX = ".seal"
AnyPart = TypeVar("AnyPart", bound="SealedPart")


def seal(path: Place, identity: Mapping[str, Any]) -> None:
    """Write `path`.seal, after the part: a part without a seal does not count. `identity` is plain JSON content."""
    content = {"identity": content_hash(dict(identity)), "digest": file_hash(path)}
    write_text(seal_of(path), json.dumps(content))


def is_sealed(path: Place, identity: Mapping[str, Any]) -> bool:
    """Whether `path` exists, was sealed with this `identity`, and still has the bytes that were sealed."""
    return has_identity(path, identity) and is_untouched(path)


def has_identity(path: Place, identity: Mapping[str, Any]) -> bool:
    """Whether `path` was sealed with this `identity`. Its bytes are not read."""
    return _read_seal(path).get("identity") == content_hash(dict(identity))


def is_untouched(path: Place) -> bool:
    """Whether `path` still has the bytes that were sealed, whatever its identity."""
    try:
        return _read_seal(path).get("digest") == file_hash(path)
    except OSError:
        return False


def _read_seal(path: Place) -> dict[str, Any]:
    """The content of a part's seal; empty if the seal is missing or damaged."""
    try:
        content = read_json(seal_of(path))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class SealedPart(Protocol):
    """A piece of work and the file that it makes."""

    @property
    def path(self) -> Place: ...
    @property
    def identity(self) -> dict[str, Any]: ...


def missing_parts(parts: Sequence[AnyPart]) -> list[AnyPart]:
    """The parts that have yet to be made. A part that exists but is damaged is one of them, with a warning."""
    missing = []
    for part in parts:
        if is_sealed(part.path, part.identity):
            continue
        if part.path.exists() and seal_of(part.path).exists():
            logger.warning(
                f"{part.path} is damaged, or is not the part that belongs there. Regenerating it now."
            )
        missing.append(part)
    return missing


def seal_of(path: Place) -> Place:
    """The path of a part's seal."""
    return path.with_name(path.name + SUFFIX)

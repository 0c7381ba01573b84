"""A finished part of an unfinished stage in, a seal beside it out: which part it is, and the digest of its bytes.

A manifest is written when a stage is done; until then each part vouches for itself. A part that was damaged, exchanged
with another, or made with other settings is not taken for the one that is asked for.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from tasks.storage.manifest import content_hash, file_hash
from tasks.storage.paths import Place, write_text

logger = logging.getLogger(__name__)
SUFFIX = ".seal"
AnyPart = TypeVar("AnyPart", bound="Part")


def seal(path: Place, identity: Mapping[str, Any]) -> None:
    """Writes `path`.seal, last: a part without one is not there. `identity` is plain JSON content."""
    content = {"identity": content_hash(dict(identity)), "digest": file_hash(path)}
    write_text(seal_of(path), json.dumps(content))


def is_sealed(path: Place, identity: Mapping[str, Any]) -> bool:
    """Whether `path` is there, is what `identity` says, and has the very bytes that were sealed."""
    return has_identity(path, identity) and is_untouched(path)


def has_identity(path: Place, identity: Mapping[str, Any]) -> bool:
    """Whether `path` was sealed as what `identity` says. Its bytes are not read."""
    return _sealed(path).get("identity") == content_hash(dict(identity))


def is_untouched(path: Place) -> bool:
    """Whether `path` has the bytes that were sealed, whatever it is."""
    try:
        return _sealed(path).get("digest") == file_hash(path)
    except OSError:
        return False


def _sealed(path: Place) -> dict[str, Any]:
    """What the seal of a part says; nothing where there is none, or a damaged one."""
    try:
        found = json.loads(seal_of(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Part(Protocol):
    """A piece of work with its file."""

    @property
    def path(self) -> Place: ...
    @property
    def identity(self) -> dict[str, Any]: ...


def missing_parts(parts: Sequence[AnyPart]) -> list[AnyPart]:
    """The parts that are still to be made. One that is there and damaged is among them, with a warning."""
    missing = []
    for part in parts:
        if is_sealed(part.path, part.identity):
            continue
        if part.path.exists() and seal_of(part.path).exists():
            logger.warning(
                f"{part.path} is damaged, or not what belongs there. What it stands for is made again now."
            )
        missing.append(part)
    return missing


def seal_of(path: Place) -> Place:
    """Where the seal of a part is."""
    return path.with_name(path.name + SUFFIX)

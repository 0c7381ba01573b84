"""Compare a stage's files with their checksums. File contents are only hashed, not parsed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from metarepair.inspection.facts import FileState
from metarepair.inspection.stored import JUDGED, StoredStage, sealed_parts
from metarepair.runs.progress import Progress
from tasks.errors import DataError
from tasks.experiences.failure_file import read_with_facts
from tasks.storage.manifest import has_digest
from tasks.storage.paths import Place, size_of
from tasks.storage.sealed_parts import is_untouched, seal_of

SHOWN_FROM_BYTES = 1 << 28  # less than this is read in about a second and needs no progress bar


class Checksums:
    """Check digests of files, with progress over the total number of bytes."""

    def __init__(self, total_bytes: int) -> None:
        shown = total_bytes >= SHOWN_FROM_BYTES
        self._progress = Progress("checksums", max(total_bytes >> 20, 1), "MiB") if shown else None
        self._read = 0

    def state(self, path: Place, promised: tuple[int, str]) -> FileState:
        """Return a file's state given its promised size and digest. The size, which is free, is compared first."""
        try:
            size = size_of(path)
            if size != promised[0]:
                return "missing" if size is None else "differs"
            same = has_digest(path, promised[1])
        except (OSError, ValueError):
            return "unreadable"
        self._advance(size, path.name)
        return "ok" if same else "differs"

    def sealed_state(self, path: Place) -> FileState:
        """Return a file's state given its seal. A file without a seal is unchecked: it may be about to be replaced."""
        mark = seal_of(path)
        same = mark.exists() and is_untouched(path)
        self._advance(size_of(path) or 0, path.name)
        if same:
            return "ok"
        return "differs" if mark.exists() and path.exists() else "unchecked"

    def part_state(self, path: Place) -> tuple[FileState, dict[str, Any]]:
        """Return the state of an environment's shard, given its seal, and the counts stored in the shard."""
        state = self.sealed_state(path)
        try:
            return state, read_with_facts(path)[1] if state != "differs" else {}
        except DataError:
            return "differs", {}

    def _advance(self, size_bytes: int, name: str) -> None:
        self._read += size_bytes
        if self._progress is not None and self._read >> 20 > self._progress.done:
            self._progress.advance((self._read >> 20) - self._progress.done, name)


def bytes_to_read(stages: Iterable[StoredStage]) -> int:
    """Return the number of bytes to read to check the stages."""
    total = 0
    for stage in stages:
        sizes = {name: file.size_bytes for name, file in stage.files.items()}
        total += sum(size for name, (size, _) in stage.promised.items() if sizes.get(name) == size)
        total += sum(sizes[name] for name in (*parts_of(stage), *sealed_of(stage)))
    return total


def promised_states(stage: StoredStage, checksums: Checksums) -> dict[str, FileState]:
    """Return the state of every file in the manifest, including files written after the listing."""
    return {n: checksums.state(stage.folder / n, promise) for n, promise in sorted(stage.promised.items())}


def parts_of(stage: StoredStage) -> list[str]:
    """Return the shards of an unfinished environment."""
    shards = stage.kind == "environment" and stage.manifest is None
    return stage.matching("parts/*.arrow") if shards else []


def sealed_of(stage: StoredStage) -> list[str]:
    """Return the files protected only by a seal: parts of an unfinished preparation, judgements of a comparison."""
    if stage.kind == "compared":
        return [name for name in JUDGED if name in stage.files and name not in stage.promised]
    return sealed_parts(stage) if stage.kind == "prepared" and stage.manifest is None else []

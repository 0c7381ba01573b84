"""Write the checkpoints of a training while it continues, and find the newest complete one.

A checkpoint is model.safetensors, optimizer.safetensors and state.json. state.json is written last and holds the
digests of the other two, so a checkpoint that is half-copied or has a flipped byte is skipped.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tasks.errors import StorageError
from tasks.storage.manifest import file_hash
from tasks.storage.names import plain_name
from tasks.storage.paths import Place, copy_file, find, read_json, remove_tree, write_text

logger = logging.getLogger(__name__)
STATE = "state.json"


def write_state(folder: Place, state: dict[str, Any]) -> None:
    """Write state.json with the digests of the safetensors files beside it."""
    files = {path.name: file_hash(path) for path in find(folder, "*.safetensors")}
    write_text(folder / STATE, json.dumps(state | {"files": files}, allow_nan=False))


def read_state(folder: Place) -> dict[str, Any] | None:
    """The state of a complete checkpoint, or None if any part of it is missing or damaged."""
    state = _claim(folder)
    return state if state is not None and not _damaged(folder, state) else None


def newest_checkpoint(folder: Place, *, level: int = logging.WARNING) -> Place | None:
    """The complete checkpoint under `folder` with the most episodes, or None.

    One that does not match its digests is skipped, with a log line of `level`.
    """
    found = [path.parent for path in find(folder, STATE, deep=True) if path.parent.suffix != ".tmp"]
    claims = {path: state for path in found if (state := _claim(path)) is not None}
    for path in (path for path in found if path not in claims):
        logger.log(
            level, f"The checkpoint {path} is damaged ({STATE} is not as it was written) and is skipped."
        )
    for path in sorted(claims, key=lambda p: claims[p]["episode"], reverse=True):
        damaged = _damaged(path, claims[path])
        if not damaged:
            return path
        logger.log(
            level,
            f"The checkpoint {path} is damaged ({', '.join(damaged)}: missing, or not as written) and is skipped; "
            "the one before it is used.",
        )
    return None


def _claim(folder: Place) -> dict[str, Any] | None:
    """The content of state.json, or None if it cannot be read."""
    try:
        state: dict[str, Any] = read_json(folder / STATE)
        names = [plain_name(name) for name in dict(state["files"])]
        return state if isinstance(state["episode"], int) and names else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _damaged(folder: Place, state: dict[str, Any]) -> list[str]:
    """Names of the files that are missing or do not match their digests."""

    def differs(name: str, digest: str) -> bool:
        try:
            return not (folder / name).is_file() or file_hash(folder / name) != digest
        except OSError:
            return True

    return [name for name, digest in state["files"].items() if differs(name, digest)]


def publish(folder: Path, final: Place) -> None:
    """Copy a checkpoint from the local `folder` to its place, state.json last."""
    remove_tree(final)
    for path in sorted(folder.iterdir(), key=lambda p: (p.name == STATE, p.name)):
        copy_file(path, final / path.name)


class Checkpoints:
    """The checkpoints of one training: `folder`/checkpoint-NNNNNN, of which the newest `kept` stay (None: all).

    Each is filled on this machine and published by a thread; the next one waits for the one before. The next `write`,
    or `finish`, raises an error of that thread.
    """

    def __init__(self, folder: Place, *, kept: int | None = 2) -> None:
        self.folder, self.kept = folder, kept
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def newest(self) -> Place | None:
        """The newest complete checkpoint of this training, anywhere below the parent of `folder`."""
        return newest_checkpoint(self.folder.parent)

    def write(
        self, episode: int, fill: Callable[[Path], None], then: Callable[[], None] = lambda: None
    ) -> None:
        """Call `fill(folder)` to write the current state. Return while it is published; `then` is called after that.

        Raises StorageError if this checkpoint or the one before it cannot be written.
        """
        self._wait()
        part = tempfile.TemporaryDirectory(prefix="metarepair")
        try:
            fill(Path(part.name))
        except OSError as error:
            part.cleanup()
            raise _not_written(Path(part.name), episode, error) from error
        self._pending = self._pool.submit(self._publish, part, episode, then)

    def finish(self) -> None:
        """Wait for the last checkpoint. Raises StorageError if it could not be written."""
        self._pool.shutdown(wait=True)
        self._wait()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _publish(
        self, part: tempfile.TemporaryDirectory[str], episode: int, then: Callable[[], None]
    ) -> None:
        final = self.folder / f"checkpoint-{episode:06d}"
        with part:
            try:
                publish(Path(part.name), final)
                then()
                for old in [] if self.kept is None else find(self.folder, "checkpoint-*")[: -self.kept]:
                    remove_tree(old)
            except (OSError, StorageError) as error:
                raise _not_written(final, episode, error) from error


def _not_written(place: Place, episode: int, error: Exception) -> StorageError:
    return StorageError(
        f"The checkpoint of episode {episode} cannot be written to {place} ({error}). The training stops here; earlier "
        "checkpoints are kept. Free space, permit writing, or restore the storage; then run the same command again to "
        "resume."
    )

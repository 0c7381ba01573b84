"""A run's folder in, the right to write there out: one driver at a time, on this machine or on any other.

While a driver works, its run has
    lock.json   the lease (tasks.storage.lease): who works there, and a beat that is renewed every few seconds
    lock        on a local path, a file that is locked by flock: a driver that dies frees it at once
Only drivers take it; workers and actors write what their driver asks for. A driver that finds another's lease in place
of its own stops.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import LockError, StorageError
from tasks.storage.file_lock import is_locked, lock_file, unlock_file
from tasks.storage.lease import (
    BEAT_S,
    DEAD_S,
    LEASE,
    Owner,
    end_lease,
    known_owner,
    lives,
    new_owner,
    renew_lease,
    runs,
    take_lease,
)
from tasks.storage.paths import Place

LOCK = "lock"


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Whom storage names as a run's writer (None where it has only begun); `alive` as far as can be seen from here."""

    owner: Owner | None
    alive: bool


@contextmanager
def locked(root: Place, verb: str, *, beat_s: float = BEAT_S, dead_s: float = DEAD_S) -> Iterator[None]:
    """Nobody else writes in the run at `root`, a folder that is there, while the block runs.

    Raises LockError when another does; also when another took it over meanwhile, because this process was suspended or
    cut off: the block is then ended as by Ctrl-C.
    """
    owner = new_owner(verb)
    descriptor = _take(root, owner, beat_s, dead_s)
    beat = _Beat(root, owner, beat_s)
    beat.start()
    failed: BaseException | None = None
    try:
        try:
            yield
        finally:
            beat.end()
    except BaseException as error:
        failed = error
    if not _release(root, owner, descriptor) or beat.lost:
        raise LockError(_lost(root)) from failed
    if failed is not None:
        raise failed


def holder(root: Place, *, dead_s: float = DEAD_S) -> Holder | None:
    """Who writes in the run at `root`, or died there without an end; None for nobody. Changes nothing."""
    owner = known_owner(root)
    held = is_locked(root / LOCK) if isinstance(root, Path) else None
    if held:
        return Holder(owner=owner, alive=True)
    if owner is None:
        return None
    gone = owner.is_of_here and (held is False or not runs(owner.pid))
    return Holder(owner=owner, alive=not gone and owner.age_s <= dead_s)


class _Beat(threading.Thread):
    """Renews a lease until it ends, or until the lease is another's: then `lost`, and the main thread is stopped."""

    def __init__(self, root: Place, owner: Owner, beat_s: float) -> None:
        super().__init__(name="lease", daemon=True)
        self.lost = False
        self._root, self._owner, self._beat_s = root, owner, beat_s
        self._over = threading.Event()
        self._of_main = threading.current_thread() is threading.main_thread()

    def run(self) -> None:
        while not self._over.wait(self._beat_s):
            try:
                self.lost = not renew_lease(self._root, self._owner)
            except (OSError, StorageError):
                continue  # out of reach for now: whose lease it is will be seen when it is back
            if self.lost:
                if self._of_main and not self._over.is_set():
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    def end(self) -> None:
        """A beat that hangs on a storage which does not answer is not waited for: the lease dies by itself."""
        self._over.set()
        self.join(timeout=2 * self._beat_s)


def _take(root: Place, owner: Owner, beat_s: float, dead_s: float) -> int | None:
    """Makes `owner` the run's; returns the descriptor of the locked file where there is one. Raises LockError."""
    try:
        descriptor = lock_file(root / LOCK) if isinstance(root, Path) else None
    except BlockingIOError as error:
        raise LockError(_refusal(root, known_owner(root))) from error
    try:
        other = known_owner(root)
        # This machine's flock is the truth about its own processes; it may not see those of another machine.
        freed = other is not None and other.is_of_here and descriptor is not None
        if other is not None and not freed and lives(root, other, beat_s=beat_s, dead_s=dead_s):
            raise LockError(_refusal(root, other))
        last = take_lease(root, owner, alone=descriptor is not None)
        if last is None or last.token != owner.token:
            raise LockError(_refusal(root, last))
    except BaseException:
        _release(root, owner, descriptor)
        raise
    return descriptor


def _release(root: Place, owner: Owner, descriptor: int | None) -> bool:
    """Whether it was the owner's to the end. A storage that fails now says nothing of it: the lease dies by itself."""
    try:
        return end_lease(root, owner)
    except (OSError, StorageError):
        return True
    finally:
        if descriptor is not None and isinstance(root, Path):
            unlock_file(root / LOCK, descriptor)


def _refusal(root: Place, other: Owner | None) -> str:
    who = "another process, which has only begun" if other is None else other.words
    return (
        f"{root} is written to by {who}; two at once would mix what they write. Wait until it ends, or stop it, then "
        "run the same command again, which goes on from there; or give this run another name. "
        f"`metarepair status {root}` tells how far it is."
    )


def _lost(root: Place) -> str:
    try:
        other = known_owner(root)
    except (OSError, StorageError):
        other = None
    how = f"was deleted ({root / LEASE})" if other is None else f"was taken over by {other.words}"
    return (
        f"This process' hold on {root} {how} while it was suspended or cut off from its storage, or by hand. It "
        "stopped, so that two do not mix what they write; what it wrote is kept. Run the same command again, once "
        "nobody else works there, to go on."
    )

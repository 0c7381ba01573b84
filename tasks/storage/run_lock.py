"""Lock a run, so that only one driver at a time writes in it, on this machine or any other.

While a driver works, its run has
    lock.json   the lease (tasks.storage.lease): its owner, and a heartbeat that is renewed every few seconds
    lock        on a local path, a file that is locked by flock: a driver that dies frees it at once
Only drivers take the lock; workers and actors write what their driver asks for. A driver stops if it finds another
driver's lease in place of its own.
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
    """A run's writer: its lease's owner (`None` if not yet written), and whether it is alive, as seen from here."""

    owner: Owner | None
    alive: bool


@contextmanager
def locked(root: Place, verb: str, *, beat_s: float = BEAT_S, dead_s: float = DEAD_S) -> Iterator[None]:
    """Hold the lock of the run at `root`, an existing folder, while the block runs.

    Raises LockError if another process holds it, or takes it over because this process was suspended or cut off from
    its storage; in the latter case the block is ended as by Ctrl-C.
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
    """The process that writes in the run at `root`, or died while writing; `None` if there is none. Changes nothing."""
    owner = known_owner(root)
    held = is_locked(root / LOCK) if isinstance(root, Path) else None
    if held:
        return Holder(owner=owner, alive=True)
    if owner is None:
        return None
    gone = owner.is_local and (held is False or not runs(owner.pid))
    return Holder(owner=owner, alive=not gone and owner.age_s <= dead_s)


class _Beat(threading.Thread):
    """Renews a lease until `end` is called. If another owner takes the lease, sets `lost` and stops the main thread."""

    def __init__(self, root: Place, owner: Owner, beat_s: float) -> None:
        super().__init__(name="lease", daemon=True)
        self.lost = False
        self._root, self._owner, self._beat_s = root, owner, beat_s
        self._over = threading.Event()
        self._in_main_thread = threading.current_thread() is threading.main_thread()

    def run(self) -> None:
        while not self._over.wait(self._beat_s):
            try:
                self.lost = not renew_lease(self._root, self._owner)
            except (OSError, StorageError):
                continue  # unreachable for now: the lease is checked again once the storage is back
            if self.lost:
                if self._in_main_thread and not self._over.is_set():
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    def end(self) -> None:
        """Stop renewing. Does not wait for a heartbeat that hangs on unresponsive storage: its lease expires anyway."""
        self._over.set()
        self.join(timeout=2 * self._beat_s)


def _take(root: Place, owner: Owner, beat_s: float, dead_s: float) -> int | None:
    """Lock the run for `owner`; return the descriptor of the locked file, if there is one. Raises LockError."""
    try:
        descriptor = lock_file(root / LOCK) if isinstance(root, Path) else None
    except BlockingIOError as error:
        raise LockError(_refusal(root, known_owner(root))) from error
    try:
        other = known_owner(root)
        # flock is reliable for processes of this machine; it may not see those of another machine.
        freed = other is not None and other.is_local and descriptor is not None
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
    """Release the run; False if `owner` had lost it. If storage fails now, assume not: the lease expires by itself."""
    try:
        return end_lease(root, owner)
    except (OSError, StorageError):
        return True
    finally:
        if descriptor is not None and isinstance(root, Path):
            unlock_file(root / LOCK, descriptor)


def _refusal(root: Place, other: Owner | None) -> str:
    who = "another process, which has only just started" if other is None else other.words
    return (
        f"{root} is in use by {who}; two processes would mix their files. Wait until it ends, or stop it, then run the "
        "same command again to resume from there; or give this run another name. "
        f"`metarepair status {root}` shows its progress."
    )


def _lost(root: Place) -> str:
    try:
        other = known_owner(root)
    except (OSError, StorageError):
        other = None
    how = f"was deleted ({root / LEASE})" if other is None else f"was taken over by {other.words}"
    return (
        f"This process' lock on {root} {how} while it was suspended or cut off from its storage, or by hand. It "
        "stopped, so that two processes do not mix their files; what it wrote is kept. Once no other process works "
        "there, run the same command again to resume."
    )

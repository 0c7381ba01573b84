"""Write and read a run's lease: `lock.json`, which names the process that writes in the run and its last heartbeat.

On an object store, which has no file locks, the lease is the only protection. If the owner ran on this machine, its
lease ends with its process. Another machine's lease counts as dead when its heartbeat is over a minute old and does not
change while we watch. If clocks disagree we may wait longer, but never take over a live run.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from tasks.errors import StorageError
from tasks.storage.paths import Place, parse_json, write_text

logger = logging.getLogger(__name__)
LEASE = "lock.json"
BEAT_S = 5.0
DEAD_S = 60.0
READS, READ_S = 3, 0.1
SETTLE_S = 0.2  # least wait between writing a lease and reading which one was written last


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that writes in a run. Times are ISO 8601.

    `machine` distinguishes hosts or containers that have the same name.
    """

    token: str
    host: str
    machine: str
    pid: int
    verb: str
    since: str
    beat: str

    def __post_init__(self) -> None:
        if not (isinstance(self.pid, int) and self.pid > 0):
            raise ValueError(f"{self.pid!r} is not a process id")
        if any(datetime.fromisoformat(moment).tzinfo is None for moment in (self.since, self.beat)):
            raise ValueError("a time has no time zone")

    @property
    def age_s(self) -> float:
        """Seconds since the last heartbeat: our clock minus the owner's, at least 0."""
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(self.beat)).total_seconds())

    @property
    def is_local(self) -> bool:
        """Whether the process id belongs to this machine."""
        return self.machine == _machine()

    @property
    def words(self) -> str:
        """`metarepair run (process 7 on host a, since 2026-11-25 04:00:00 UTC)`."""
        since = datetime.fromisoformat(self.since).astimezone(UTC)
        return f"`metarepair {self.verb}` (process {self.pid} on host {self.host}, since {since:%F %T} UTC)"


def new_owner(verb: str) -> Owner:
    """An `Owner` for this process, starting now."""
    now = _now()
    return Owner(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        verb=verb,
        since=now,
        beat=now,
    )


def read_lease(root: Place) -> Owner | None:
    """The lease's owner, `None` if there is no lease. Raises ValueError if it is damaged, StorageError."""
    try:
        return Owner(**parse_json(_content(root / LEASE)))
    except FileNotFoundError:
        return None
    except TypeError as error:  # JSON of another shape
        raise ValueError(str(error)) from error


def _content(path: Place) -> bytes:
    """Read a file, with retries: some stores fail to return an object while it is being replaced.

    Raises ValueError for a pipe or a device, which could be waited for without end.
    """
    if isinstance(path, Path) and path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    for _ in range(READS - 1):
        with suppress(StorageError):
            return path.read_bytes()
        time.sleep(READ_S)
    return path.read_bytes()


def known_owner(root: Place) -> Owner | None:
    """`read_lease`, but a damaged lease gives `None`: its owner, if any, rewrites it at the next heartbeat."""
    try:
        return read_lease(root)
    except ValueError:
        return None


def take_lease(root: Place, owner: Owner, *, alone: bool) -> Owner | None:
    """Write the lease, wait, and return the owner that it then has.

    Pass `alone=True` if a file lock already excludes other processes; this skips the wait. If two processes take the
    lease at the same time, each waits after writing, so both then read the same, last-written lease.
    """
    started = time.monotonic()
    write_text(root / LEASE, json.dumps(asdict(owner)))
    if alone:
        return owner
    time.sleep(max(SETTLE_S, 5 * (time.monotonic() - started)))
    return known_owner(root)


def renew_lease(root: Place, owner: Owner) -> bool:
    """Write one heartbeat; False if the lease is gone or has another owner. Raises OSError or StorageError."""
    try:
        lease = read_lease(root)
        if lease is None or lease.token != owner.token:
            return False
    except ValueError:
        pass  # damaged: rewrite it
    write_text(root / LEASE, json.dumps(asdict(replace(owner, beat=_now()))))
    return True


def end_lease(root: Place, owner: Owner) -> bool:
    """Delete the lease if `owner` holds it; False if it has another owner or is gone."""
    lease = known_owner(root)
    if lease is None or lease.token != owner.token:
        return False
    (root / LEASE).unlink(missing_ok=True)
    return True


def lives(root: Place, other: Owner, *, beat_s: float, dead_s: float) -> bool:
    """Whether the owner of a lease is still running. Watches the lease as long as needed, with a log line."""
    if other.is_local and not runs(other.pid):
        return False
    started, logged = time.monotonic(), False
    while True:
        watched = time.monotonic() - started
        left = max(dead_s - max(watched, other.age_s), 1.5 * beat_s - watched)
        if left <= 0:
            return False
        if not logged:
            logger.info(
                f"{root} was held by {other.words}; waiting up to {left:.0f} s to see whether it is still running."
            )
            logged = True
        time.sleep(min(left, beat_s / 4))
        try:
            lease = known_owner(root)
        except (OSError, StorageError):
            continue  # no news; if the store stays unreachable, the next write fails
        if lease is None:
            return False
        if (lease.token, lease.beat) != (other.token, other.beat):
            return True


def runs(pid: int) -> bool:
    """Whether the process runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat()


@cache
def _machine() -> str:
    """Host name, boot id and process id namespace. Process ids can only be compared if all three agree."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)

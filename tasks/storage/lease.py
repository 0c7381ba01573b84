"""A run's folder in, `lock.json` there and back out: who writes in the run, with a beat that shows that it still does.

The only hold there can be on an object store. A lease whose process is gone from this machine is dead at once. Any
other is watched: it is dead when its beat is a minute old and stays as it is. Clocks that differ cost time, not a run.
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
from tasks.storage.paths import Place, write_text

logger = logging.getLogger(__name__)
LEASE = "lock.json"
BEAT_S = 5.0
DEAD_S = 60.0
READS, READ_S = 3, 0.1
SETTLE_S = 0.2  # at least, between writing a lease and reading whose came last


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who writes in a run. Times are ISO 8601; `machine` tells hosts and containers of one name apart."""

    token: str
    host: str
    machine: str
    pid: int
    verb: str
    since: str
    beat: str

    def __post_init__(self) -> None:
        if not (isinstance(self.pid, int) and self.pid > 0):
            raise ValueError(f"{self.pid!r} is no process")
        if any(datetime.fromisoformat(moment).tzinfo is None for moment in (self.since, self.beat)):
            raise ValueError("a time without a zone")

    @property
    def age_s(self) -> float:
        """Seconds since its last sign of life, by its clock and ours."""
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(self.beat)).total_seconds())

    @property
    def is_of_here(self) -> bool:
        """Whether its process id is one of this machine's."""
        return self.machine == _machine()

    @property
    def words(self) -> str:
        """`metarepair run (process 7 on host a, since 2026-11-25 04:00:00 UTC)`."""
        since = datetime.fromisoformat(self.since).astimezone(UTC)
        return f"`metarepair {self.verb}` (process {self.pid} on host {self.host}, since {since:%F %T} UTC)"


def new_owner(verb: str) -> Owner:
    """This process, from now on."""
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
    """The lease's owner, None where there is no lease. Raises ValueError for a damaged one, StorageError."""
    try:
        return Owner(**json.loads(_content(root / LEASE)))
    except FileNotFoundError:
        return None
    except (TypeError, RecursionError) as error:  # JSON of another shape
        raise ValueError(str(error)) from error


def _content(path: Place) -> bytes:
    """Asked for again where that fails: not every store answers for an object while it is being replaced."""
    for _ in range(READS - 1):
        with suppress(StorageError):
            return path.read_bytes()
        time.sleep(READ_S)
    return path.read_bytes()


def known_owner(root: Place) -> Owner | None:
    """As `read_lease`; a damaged lease, which its owner writes anew at the next beat, tells of nobody."""
    try:
        return read_lease(root)
    except ValueError:
        return None


def take_lease(root: Place, owner: Owner, *, alone: bool) -> Owner | None:
    """Writes the lease; returns whose it is. `alone`: nobody else can be doing the same now.

    Of two who come at once both write before either has waited, so both read the one that came last.
    """
    started = time.monotonic()
    write_text(root / LEASE, json.dumps(asdict(owner)))
    if alone:
        return owner
    time.sleep(max(SETTLE_S, 5 * (time.monotonic() - started)))
    return known_owner(root)


def renew_lease(root: Place, owner: Owner) -> bool:
    """Beats once; False when the lease is another's, or gone. Raises OSError, StorageError when out of reach."""
    try:
        found = read_lease(root)
        if found is None or found.token != owner.token:
            return False
    except ValueError:
        pass  # damaged: it is written anew
    write_text(root / LEASE, json.dumps(asdict(replace(owner, beat=_now()))))
    return True


def end_lease(root: Place, owner: Owner) -> bool:
    """Deletes the lease if it is the owner's; False when it is another's, or gone."""
    found = known_owner(root)
    if found is None or found.token != owner.token:
        return False
    (root / LEASE).unlink(missing_ok=True)
    return True


def lives(root: Place, other: Owner, *, beat_s: float, dead_s: float) -> bool:
    """Whether the owner of a lease still works. Watches it for as long as that takes, with a log line."""
    if other.is_of_here and not runs(other.pid):
        return False
    started, logged = time.monotonic(), False
    while True:
        watched = time.monotonic() - started
        left = max(dead_s - max(watched, other.age_s), 1.5 * beat_s - watched)
        if left <= 0:
            return False
        if not logged:
            logger.info(
                f"{root} was held by {other.words}; looking for up to {left:.0f} s whether that still works."
            )
            logged = True
        time.sleep(min(left, beat_s / 4))
        try:
            found = known_owner(root)
        except (OSError, StorageError):
            continue  # no news; a store that stays away will be seen by who writes there next
        if found is None:
            return False
        if (found.token, found.beat) != (other.token, other.beat):
            return True


def runs(pid: int) -> bool:
    """Whether this machine has the process."""
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
    """Host, boot and space of process ids: where one of these differs, a process id says nothing."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)

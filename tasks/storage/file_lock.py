"""Lock a local file with flock, on file systems that support it; a process that dies frees its lock at once."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

# `is_locked` holds the lock for an instant; a real owner holds it for longer than all these attempts together.
ATTEMPTS, ATTEMPT_S = 5, 0.1
NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def lock_file(path: Path) -> int | None:
    """The descriptor that holds the lock, `None` without flock support. Raises BlockingIOError if it is held."""
    for attempt in range(ATTEMPTS):
        try:
            return _open_and_lock(path)
        except BlockingIOError:
            if attempt == ATTEMPTS - 1:
                raise
        time.sleep(ATTEMPT_S)
    raise AssertionError("the last attempt returns or raises")


def unlock_file(path: Path, descriptor: int) -> None:
    """Delete the file while it is still locked, so that a process that has just opened it notices that it is gone."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
    os.close(descriptor)


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock; `None` if that cannot be determined. Changes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def _open_and_lock(path: Path) -> int | None:
    """Lock the file. Retries if the last owner deleted it, or its empty folder, between opening and locking."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in NO_FLOCK:
                raise
            path.unlink(missing_ok=True)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)

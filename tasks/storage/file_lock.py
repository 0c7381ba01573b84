"""A local file in, its exclusive lock by flock out, where the file system has such locks: who dies frees it at once."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

# Who looks whether a file is locked holds the lock for an instant; an owner holds it longer than these attempts.
ATTEMPTS, ATTEMPT_S = 5, 0.1
NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def lock_file(path: Path) -> int | None:
    """The descriptor that holds the lock; None where there are no such locks. Raises BlockingIOError when held."""
    for attempt in range(ATTEMPTS):
        try:
            return _lock_what_stays(path)
        except BlockingIOError:
            if attempt == ATTEMPTS - 1:
                raise
        time.sleep(ATTEMPT_S)
    raise AssertionError("the last attempt returns or raises")


def unlock_file(path: Path, descriptor: int) -> None:
    """Deletes the file while it is locked, so that whoever opened it meanwhile sees that it is none now."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
    os.close(descriptor)


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock; None where that cannot be known. Changes nothing."""
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


def _lock_what_stays(path: Path) -> int | None:
    """Once more where the last owner deleted the file, or the empty folder, between our looks at them."""
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

"""Run a Ray of our own on this machine: for this user alone, and gone at the end.

Other users of the machine must not reach it. It listens on loopback (but for one port of PyTorch), asks for a random
token that is written nowhere, and keeps its files in a folder that only this user can enter: in Ray's own folders all
users may write.

Ray's processes wait for each other for fixed times: 15 s for an agent's port, 30 s for the node. If other work occupies
the CPUs, Ray gives up ("The current node timed out during startup") although nothing is wrong. A later start succeeds.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from distributed.on_ray.ray_words import words_of
from tasks.errors import WorkerError

logger = logging.getLogger(__name__)
ATTEMPTS = 5
WAIT_S = (2.0, 15.0)  # between two attempts; random, so that commands started together do not retry together
END_S = 2.0  # for processes that are told to end, before they are killed
REAP_S = 10.0
LEAST_BYTES = 4 << 20  # of disk; a small run was seen to need no more
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0": this Ray is for this machine only; the same on Linux


def _make_private() -> None:
    """Prepare the environment of a Ray of our own, before Ray is imported.

    It sets a random token unless the environment says how to authenticate. Otherwise Ray would write one to the home
    folder, readable by all; and if two Rays start at the same time there, each writes one, and one of the two then
    rejects itself ("InvalidAuthToken").
    """
    os.environ[LOOPBACK] = "0"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    given = any(os.environ.get(variable) for variable in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not given and os.environ.get("RAY_AUTH_MODE") != "disabled":
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def warn_of_readable_token() -> None:
    """Warn if the file with the token that Ray will use can be read by other users."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE") == "disabled":
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with suppress(OSError):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            logger.warning(
                f"Other users can read Ray's token ({path}, mode {mode:04o}) and run code with it on the cluster. "
                f"Run `chmod 600 {path}`; if others use this machine, make a new token as well."
            )


@contextmanager
def local_ray(options: Mapping[str, object]) -> Iterator[None]:
    """Run Ray on this machine for the block, with `options` of `ray.init`, and connect to it.

    Ray must not have been imported before: it reads the environment then. At the end Ray's processes are stopped and
    its files removed; if Ray failed, the files are kept and named. Raises WorkerError if Ray does not start: at once
    for an error that would recur (a folder that cannot be written), after ATTEMPTS attempts for any other.
    """
    _make_private()
    import ray

    folder, before, started = _own_folder(), _children(), set[Any]()
    try:
        _start({**options, "_temp_dir": folder}, before)
        started = _children() - before
        yield
    except WorkerError:
        logger.warning(f"Ray's logs are kept in {folder}/session_latest/logs")
        folder = ""
        raise
    finally:
        ray.shutdown()
        _stop(started or _children() - before)
        shutil.rmtree(folder, ignore_errors=True)


def _own_folder() -> str:
    """Make a folder that only this user can enter. Its path is short, as Ray's sockets need."""
    where = Path(os.environ.get("RAY_TMPDIR") or _system_folder()).absolute()
    try:
        free = shutil.disk_usage(where).free
        if free < LEAST_BYTES:  # Ray would wait for its own files for minutes
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {free:,} bytes are free", str(where))
        return tempfile.mkdtemp(prefix="ray-", dir=where)
    except OSError as error:
        raise _refusal(error, 1) from error


def _system_folder() -> str:
    """The system's temporary folder. On a Mac it is /tmp as in Ray, since the user's own has a long path."""
    return "/tmp" if sys.platform == "darwin" else tempfile.gettempdir()


def _start(options: Mapping[str, object], before: set[Any]) -> None:
    """Start Ray and connect to it; kill what a failed start leaves behind, which are all children but `before`."""
    import ray

    # "local" never joins a cluster that already runs on this machine; without an address, Ray would join it.
    options = {**options, "address": "local", "num_cpus": os.cpu_count(), "include_dashboard": False}
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(**deepcopy(options))
            return
        except Exception as error:
            ray.shutdown()
            _stop(_children() - before)
            if attempt == ATTEMPTS or _stays(error):
                raise _refusal(error, attempt) from error
            wait_s = random.SystemRandom().uniform(*WAIT_S)
            logger.warning(f"Ray did not start ({words_of(error)}); trying again in {wait_s:.0f} s")
            time.sleep(wait_s)


def _refusal(error: Exception, attempts: int) -> WorkerError:
    tried = f", in {attempts} attempts" if attempts > 1 else ""
    return WorkerError(
        f"Ray could not be started on this machine{tried} ({words_of(error)}). It needs a writable folder with a short "
        "path: RAY_TMPDIR or, if that is unset, the system's temporary folder. Run fewer other programs, or set "
        "workers=0 to run without Ray."
    )


def _stays(error: Exception) -> bool:
    """Whether another attempt would fail the same way: a wrong setting, or a folder that cannot be written."""
    if isinstance(error, OSError):
        return not isinstance(error, (ConnectionError, TimeoutError)) and error.errno != errno.EADDRINUSE
    return isinstance(error, ValueError)


def _children() -> set[Any]:
    """All descendants of this process."""
    import psutil  # comes with Ray, which puts it on the path

    return set(psutil.Process().children(recursive=True))


def _stop(processes: set[Any]) -> None:
    """Wait until these processes have ended, and kill those that do not. Ray itself ends them, but not all at once."""
    import psutil

    _, left = psutil.wait_procs(processes, timeout=END_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=REAP_S)

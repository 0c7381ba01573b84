"""Start Ray on this machine, and retry if the machine is too busy.

Ray's processes wait for each other for fixed times: 15 s for an agent's port, 30 s for the node. If other work occupies
the CPUs, Ray gives up ("The current node timed out during startup") although nothing is wrong. A later start succeeds.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any

from distributed.on_ray.ray_words import words_of
from tasks.errors import UserError

logger = logging.getLogger(__name__)
ATTEMPTS = 5
WAIT_S = (2.0, 15.0)  # between two attempts; random, so that commands started together do not retry together
REAP_S = 10.0
TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def start_local_ray(options: Mapping[str, object]) -> None:
    """Start Ray on this machine with `options` of `ray.init`, and connect to it.

    Processes that a failed start leaves behind are killed. Raises UserError if Ray does not start: at once for an
    error that would recur (a folder that cannot be written), after ATTEMPTS attempts for any other.
    """
    import ray

    _give_token()
    # "local" never joins a cluster that already runs on this machine; without an address, Ray would join it.
    options = {**options, "address": "local", "num_cpus": os.cpu_count(), "include_dashboard": False}
    for attempt in range(1, ATTEMPTS + 1):
        before = _children()
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


def _refusal(error: Exception, attempts: int) -> UserError:
    tried = f", in {attempts} attempts" if attempts > 1 else ""
    return UserError(
        f"Ray could not be started on this machine{tried} ({words_of(error)}). It writes its files to RAY_TMPDIR (a "
        "short, writable path) or, if that is unset, to the system's temporary folder; its logs are in "
        "ray/session_latest/logs there. Run fewer other programs, or set workers=0 to run without Ray."
    )


def _stays(error: Exception) -> bool:
    """Whether another attempt would fail the same way: a wrong setting, or a folder that cannot be written."""
    if isinstance(error, OSError):
        return not isinstance(error, (ConnectionError, TimeoutError)) and error.errno != errno.EADDRINUSE
    return isinstance(error, ValueError)


def _give_token() -> None:
    """Set a token for the Ray that is about to start, unless the environment says how to authenticate.

    Otherwise Ray writes a token to the home folder if there is none. If two Rays start at the same time, each writes
    one, and one of the two then rejects itself ("InvalidAuthToken").
    """
    if not any(os.environ.get(variable) for variable in TOKEN_VARIABLES):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _children() -> set[Any]:
    """All descendants of this process."""
    import psutil  # comes with Ray, which puts it on the path

    return set(psutil.Process().children(recursive=True))


def _stop(processes: set[Any]) -> None:
    """Kill the processes that a failed start left behind: Ray no longer knows of them."""
    import psutil

    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=REAP_S)

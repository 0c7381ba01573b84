"""Start a Ray on this machine, as often as it takes on a busy one.

Ray's processes wait for each other for fixed times: 15 s for an agent's port, 30 s for the node. Where other work keeps
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
WAIT_S = (2.0, 15.0)  # between two attempts, at random: commands that were started together draw apart
REAP_S = 10.0
TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def start_local_ray(options: Mapping[str, object]) -> None:
    """Starts a Ray on this machine, with `options` of `ray.init`, and connects to it.

    What a failed start leaves behind is stopped. Raises UserError where Ray does not start: at once for what stays as
    it is (a folder that cannot be written), after ATTEMPTS attempts for all else.
    """
    import ray

    _give_token()
    # "local" never joins a cluster that somebody else started on this machine, as no address would.
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
        f"Ray could not be started on this machine{tried} ({words_of(error)}). Its files go to RAY_TMPDIR, which must "
        "be a short path that can be written, else to the system's temporary folder; its logs are there in "
        "ray/session_latest/logs. Run fewer programs beside it, or set workers=0 to do without Ray."
    )


def _stays(error: Exception) -> bool:
    """Whether another attempt would fail as this one did: a wrong setting, or a folder that cannot be written."""
    if isinstance(error, OSError):
        return not isinstance(error, (ConnectionError, TimeoutError)) and error.errno != errno.EADDRINUSE
    return isinstance(error, ValueError)


def _give_token() -> None:
    """Gives the Ray to come a token of its own, unless the environment says how to authenticate.

    Otherwise Ray writes one to the home folder if there is none, and two that start at the same time write two:
    one of them then refuses itself ("InvalidAuthToken").
    """
    if not any(os.environ.get(variable) for variable in TOKEN_VARIABLES):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _children() -> set[Any]:
    """All processes that this one started, and those that they started."""
    import psutil  # Ray brings it, and puts it on the path

    return set(psutil.Process().children(recursive=True))


def _stop(processes: set[Any]) -> None:
    """Kills what a failed start left behind: Ray has forgotten these processes."""
    import psutil

    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=REAP_S)

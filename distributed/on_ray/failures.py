"""Pass a UserError from a rank to the driver through storage, so that Ray Train does not retry it.

Ray Train restarts a worker group whatever ended it, and an error that the user must fix would recur each time. So the
rank that raises it writes it to storage. The restarted group finds it there and ends at once; the driver raises it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import tasks.errors
from distributed.on_ray.ray_words import GO_ON, words_of
from tasks.errors import UserError, WorkerError
from tasks.storage.names import remove_listed
from tasks.storage.paths import Place, read_json, write_text

FAILURE = "failure.json"


def write_failure(folder: Place, error: UserError | None) -> None:
    """Write the error to `folder`; with None, remove the one that an earlier attempt wrote."""
    if error is None:
        remove_listed(folder, FAILURE)
        return
    write_text(folder / FAILURE, json.dumps({"kind": type(error).__name__, "text": str(error)}))


def read_failure(folder: Place) -> UserError | None:
    """The error that was written to `folder`, or None."""
    try:
        content = read_json(folder / FAILURE)
        kind = getattr(tasks.errors, content["kind"])
    except FileNotFoundError:
        return None
    error: UserError = kind(content["text"])
    return error


def user_error(error: BaseException) -> BaseException:
    """The error to show for a failed Ray Train run: a worker's own UserError, or WorkerError if Ray lost the worker.

    Any other error is returned unchanged.
    """
    from ray.exceptions import RayError, RayTaskError

    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", None)}
    causes = [cause for failure in failures.values() for cause in _chain(failure)]
    for cause in causes:
        # A RayTaskError is also an instance of its cause's class, but its text is a traceback.
        if isinstance(cause, UserError) and not isinstance(cause, RayTaskError):
            return cause
    for cause in causes:
        if isinstance(cause, RayError) and not isinstance(cause, RayTaskError):
            return WorkerError(
                "A training lost its workers more often than ray.max_failures allows. Ray says: "
                f"{words_of(cause)} See Ray's logs for details. {GO_ON}"
            )
    return error


def _chain(error: Any) -> Iterator[Any]:
    """The error and its causes, however Ray wraps them."""
    while error is not None:
        yield error
        wrapped = getattr(error, "cause", None) or getattr(error, "health_check_failure", None)
        error = wrapped or error.__cause__

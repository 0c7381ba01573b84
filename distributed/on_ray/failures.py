"""A UserError of one rank in, the same error at the driver out: over storage, as a worker group can only die.

Ray Train starts a group again whatever it died of. What the user must mend would fail as often as that; so the rank
that meets it leaves it on storage, the group that is started next finds it and ends at once, and the driver raises it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import tasks.errors
from distributed.on_ray.ray_words import GO_ON, words_of
from tasks.errors import UserError, WorkerError
from tasks.storage.paths import Place, remove, write_text

FAILURE = "failure.json"


def write_failure(folder: Place, error: UserError | None) -> None:
    """Leaves the error in `folder`; None takes away what an earlier attempt left."""
    if error is None:
        remove(folder / FAILURE)
        return
    write_text(folder / FAILURE, json.dumps({"kind": type(error).__name__, "text": str(error)}))


def read_failure(folder: Place) -> UserError | None:
    """The error that was left in `folder`, None where there is none."""
    try:
        content = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
        kind = getattr(tasks.errors, content["kind"])
    except FileNotFoundError:
        return None
    error: UserError = kind(content["text"])
    return error


def user_error(error: BaseException) -> BaseException:
    """What ended a Ray Train run, for the user: a worker's own UserError, a WorkerError where Ray lost it.

    Any other error comes back as it is.
    """
    from ray.exceptions import RayError, RayTaskError

    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", None)}
    causes = [cause for failure in failures.values() for cause in _chain(failure)]
    for cause in causes:
        # Ray's error of a task is of its cause's class, too, and says a traceback.
        if isinstance(cause, UserError) and not isinstance(cause, RayTaskError):
            return cause
    for cause in causes:
        if isinstance(cause, RayError) and not isinstance(cause, RayTaskError):
            return WorkerError(
                "The workers of a training were lost, more often than ray.max_failures allows. Ray says: "
                f"{words_of(cause)} Its logs say more. {GO_ON}"
            )
    return error


def _chain(error: Any) -> Iterator[Any]:
    """An error and what it came from, however Ray wraps it."""
    while error is not None:
        yield error
        wrapped = getattr(error, "cause", None) or getattr(error, "health_check_failure", None)
        error = wrapped or error.__cause__

"""A UserError of one rank in, the same error at the driver out: over storage, as a worker group can only die.

Ray Train starts a group again whatever it died of. What the user must mend would fail as often as that; so the rank
that meets it leaves it on storage, the group that is started next finds it and ends at once, and the driver raises it.
"""

from __future__ import annotations

import json
from typing import Any

import tasks.errors
from tasks.errors import UserError
from tasks.storage import Place, remove, write_text

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
    """The UserError that a worker raised, if that is what ended a Ray Train run; else the error itself."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        cause: Any = failure
        while cause is not None:
            if isinstance(cause, UserError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    return error

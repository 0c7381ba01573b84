"""Shorten Ray's error messages to one line without Ray's guesses, and raise Ray's own failures as `WorkerError`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from tasks.errors import UserError, WorkerError

# Ray appends possible causes, such as lack of memory, to the message of any process's death.
GUESSES = r"There are some potential root causes|Some common causes include|Potential causes include"
COLOURS = r"\x1b\[[0-9;]*m"
GO_ON = "Finished work is kept: run the same command again to resume."


def words_of(error: BaseException) -> str:
    """The message as one line, without Ray's guesses; of a traceback, only the first and last line.

    An error without a message is named by its type.
    """
    text = re.split(GUESSES, re.sub(COLOURS, "", str(error)))[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(line.endswith("Traceback (most recent call last):") for line in lines):
        lines = [lines[0], lines[-1]]
    return " ".join(" ".join(lines).split()) or type(error).__name__


def raise_cause(error: BaseException) -> NoReturn:
    """Raise a worker's UserError or OSError as itself, and any other error as Ray's."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        raise cause from None
    if isinstance(cause, OSError):
        raise cause from error
    raise error


@contextmanager
def raise_ray_failures() -> Iterator[None]:
    """Raise Ray's own failures in the block as WorkerError; errors of the work pass unchanged."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError:
        raise  # the work's own error, with its traceback
    except RayError as error:
        raise WorkerError(
            f"Ray failed ({type(error).__name__}): {words_of(error)} See Ray's logs for details. {GO_ON}"
        ) from error

"""Tell in one line what Ray says of a failure, without what it guesses; end Ray's own failures as a `WorkerError`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from tasks.errors import UserError, WorkerError

# Ray appends to any death of a process what it could have been: among others, lack of memory.
GUESSES = r"There are some potential root causes|Some common causes include|Potential causes include"
COLOURS = r"\x1b\[[0-9;]*m"
GO_ON = "What is done is kept: run the same command again to go on."


def words_of(error: BaseException) -> str:
    """What an error says, as one line: of a traceback its last line, of Ray's guesses nothing; else its type."""
    text = re.split(GUESSES, re.sub(COLOURS, "", str(error)))[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(line.endswith("Traceback (most recent call last):") for line in lines):
        lines = [lines[0], lines[-1]]
    return " ".join(" ".join(lines).split()) or type(error).__name__


def raise_cause(error: BaseException) -> NoReturn:
    """Raises what a worker raised: a UserError or an error of the operating system as itself, else Ray's error."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        raise cause from None
    if isinstance(cause, OSError):
        raise cause from error
    raise error


@contextmanager
def failures_of_ray_told() -> Iterator[None]:
    """Raises WorkerError for what fails of Ray itself in the block; errors of the work on it come out as they are."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError:
        raise  # the work's own error, with its traceback
    except RayError as error:
        raise WorkerError(
            f"Ray failed ({type(error).__name__}): {words_of(error)} Its logs say more. {GO_ON}"
        ) from error
